// A block of threads as fibers of one thread: each runs until its barrier, then the next. Odd rounds go
// backwards through the block, so that what only works in one order is seen.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../host.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

__thread Index3 threadIdx;
__thread Index3 blockIdx;
__thread Index3 blockDim;
__thread Index3 gridDim;

namespace stand_in {
namespace {

#if defined(__SANITIZE_ADDRESS__)
const size_t STACK_BYTES = 256 << 10;
#else
const size_t STACK_BYTES = 64 << 10;
#endif

// ------------------------------------------------------------------------ switching stacks

#if defined(__x86_64__)

struct Stack {
  void *top = nullptr;
};

extern "C" void stand_in_switch(void **from, void *to);
// Pushes what a call keeps, changes stacks, pops it.
asm(R"(
.text
.type stand_in_switch, @function
stand_in_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size stand_in_switch, .-stand_in_switch
)");

void prepare(Stack &stack, char *memory, void (*entry)()) {
  void **top = reinterpret_cast<void **>(memory + STACK_BYTES);
  *--top = nullptr;  // Where a return from the entry would go: it has none.
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  stack.top = top;
}

void change(Stack &from, Stack &to) { stand_in_switch(&from.top, to.top); }

#else

struct Stack {
  ucontext_t context;
};

void prepare(Stack &stack, char *memory, void (*entry)()) {
  getcontext(&stack.context);
  stack.context.uc_stack.ss_sp = memory;
  stack.context.uc_stack.ss_size = STACK_BYTES;
  stack.context.uc_link = nullptr;
  makecontext(&stack.context, entry, 0);
}

void change(Stack &from, Stack &to) { swapcontext(&from.context, &to.context); }

#endif

// ------------------------------------------------------------------------ one block

enum class State { Ready, Waiting, Done };

struct Fiber {
  Stack stack;
  char *memory = nullptr;
  State state = State::Done;
  void *fake = nullptr;  // AddressSanitizer's.
  void *tsan = nullptr;  // ThreadSanitizer's.
};

// The fibers of one thread of the host, made when first wanted and kept.
struct Block {
  std::vector<Fiber> fibers;
  Stack scheduler;
  void *scheduler_fake = nullptr;
  void *scheduler_tsan = nullptr;
  const void *scheduler_bottom = nullptr;
  size_t scheduler_bytes = 0;
  unsigned current = 0;
  bool trapped = false;
  void (*body)(const void *) = nullptr;
  const void *arguments = nullptr;

  ~Block() {
    for (Fiber &fiber : fibers) {
      munmap(fiber.memory, STACK_BYTES);
#if defined(__SANITIZE_THREAD__)
      __tsan_destroy_fiber(fiber.tsan);
#endif
    }
  }

  void grow(unsigned threads) {
    while (fibers.size() < threads) {
      Fiber fiber;
      void *memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) {
        fprintf(stderr, "stand-in: no memory for the stacks of a block\n");
        abort();
      }
      fiber.memory = static_cast<char *>(memory);
#if defined(__SANITIZE_THREAD__)
      fiber.tsan = __tsan_create_fiber(0);
#endif
      fibers.push_back(fiber);
    }
  }

  void resume(unsigned thread) {
    Fiber &fiber = fibers[thread];
    current = thread;
    threadIdx = {thread, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake, fiber.memory, STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
    scheduler_tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.tsan, 0);
#endif
    change(scheduler, fiber.stack);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
  }

  // From a fiber back to the scheduler.
  void suspend(bool for_good) {
    Fiber &fiber = fibers[current];
    fiber.state = for_good ? State::Done : State::Waiting;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake, scheduler_bottom, scheduler_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_tsan, 0);
#endif
    change(fiber.stack, scheduler);
    entered(fiber);
  }

  void entered([[maybe_unused]] Fiber &fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake, &scheduler_bottom, &scheduler_bytes);
    fiber.fake = nullptr;
#endif
  }

  void run(unsigned threads);
};

thread_local Block block;

void entry() {
  Block &mine = block;
  mine.entered(mine.fibers[mine.current]);
  try {
    mine.body(mine.arguments);
  } catch (const Trap &) {
    mine.trapped = true;
  }
  mine.suspend(true);
  abort();
}

void Block::run(unsigned threads) {
  for (unsigned thread = 0; thread < threads; thread++) {
    Fiber &fiber = fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.memory, STACK_BYTES);
#endif
    prepare(fiber.stack, fiber.memory, entry);
    fiber.state = State::Ready;
    fiber.fake = nullptr;
  }
  for (unsigned round = 0;; round++) {
    for (unsigned i = 0; i < threads; i++) resume(round % 2 == 0 ? i : threads - 1 - i);
    unsigned done = 0;
    for (unsigned thread = 0; thread < threads; thread++) done += fibers[thread].state == State::Done;
    if (done == threads || trapped) return;
    if (done > 0) {
      fprintf(stderr,
              "stand-in: block (%u, %u, %u): %u of %u threads have ended where the others wait at a barrier\n",
              blockIdx.x, blockIdx.y, blockIdx.z, done, threads);
      abort();
    }
  }
}

}  // namespace

void barrier() {
  Block &mine = block;
  if (mine.body == nullptr) {
    fprintf(stderr, "stand-in: __syncthreads() in a KERNEL: make it a BLOCK_KERNEL\n");
    abort();
  }
  mine.suspend(false);
}

void run_blocks(void (*body)(const void *), const void *arguments, Index3 grid, unsigned threads) {
  Block &mine = block;
  mine.grow(threads);
  mine.body = body;
  mine.arguments = arguments;
  mine.trapped = false;
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z && !mine.trapped; z++)
    for (unsigned y = 0; y < grid.y && !mine.trapped; y++)
      for (unsigned x = 0; x < grid.x && !mine.trapped; x++) {
        blockIdx = {x, y, z};
        mine.run(threads);
      }
  mine.body = nullptr;
  if (mine.trapped) throw Trap();
}

}  // namespace stand_in
