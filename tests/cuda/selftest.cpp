// Exercises the stand-ins by themselves, so that sanitizers can watch them: streams, events, graphs, barriers, and
// what the driver has to refuse; cudnn/selftest.cpp, cuDNN's graph API. Exits with 0 if all is as CUDA has it.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void *);
int cuCtxSynchronize();
int cuMemAlloc_v2(uint64_t *, size_t);
int cuMemFree_v2(uint64_t);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemHostAlloc(void **, size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int cuMemcpyDtoDAsync_v2(uint64_t, uint64_t, size_t, void *);
int cuMemsetD8Async(uint64_t, unsigned char, size_t, void *);
int cuMemsetD32Async(uint64_t, unsigned, size_t, void *);
int cuStreamCreate(void **, unsigned);
int cuStreamDestroy_v2(void *);
int cuStreamSynchronize(void *);
int cuStreamQuery(void *);
int cuStreamWaitEvent(void *, void *, unsigned);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuStreamIsCapturing(void *, int *);
int cuEventCreate(void **, unsigned);
int cuEventDestroy_v2(void *);
int cuEventRecord(void *, void *);
int cuEventQuery(void *);
int cuEventSynchronize(void *);
int cuEventElapsedTime_v2(float *, void *, void *);
int cuGraphInstantiateWithFlags(void **, void *, unsigned long long);
int cuGraphLaunch(void *, void *);
int cuGraphExecDestroy(void *);
int cuGraphDestroy(void *);
int cuLaunchHostFunc(void *, void (*)(void *), void *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                   void **);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuModuleUnload(void *);
int cuFuncGetParamInfo(void *, size_t, size_t *, size_t *);
}

// What is wrong with cuDNN's stand-in.
int cudnn_graph_failures();

namespace {

int failures = 0;

void expect(int line, long found, long wanted) {
  if (found == wanted) return;
  fprintf(stderr, "selftest.cpp:%d: %ld and not %ld\n", line, found, wanted);
  failures++;
}

#define EXPECT(found, wanted) expect(__LINE__, (long)(found), (long)(wanted))
#define OK(call) EXPECT(call, 0)

const size_t COUNT = 20000;
const size_t BYTES = COUNT * 4;

uint64_t allocate(size_t bytes) {
  uint64_t address = 0;
  OK(cuMemAlloc_v2(&address, bytes));
  return address;
}

float *pinned(size_t count) {
  void *address = nullptr;
  OK(cuMemHostAlloc(&address, count * 4, 0));
  return static_cast<float *>(address);
}

void *stream() {
  void *made = nullptr;
  OK(cuStreamCreate(&made, 1));
  return made;
}

void *event(unsigned flags = 0) {
  void *made = nullptr;
  OK(cuEventCreate(&made, flags));
  return made;
}

// The kernels of fill.cu, by PTX that names them.
struct Kernels {
  void *module = nullptr;
  void *increase = nullptr, *block_sum = nullptr;

  Kernels() {
    const char *ptx = ".version 9.0\n.target sm_90\n.entry increase(\n.entry block_sum(\n";
    OK(cuModuleLoadData(&module, ptx));
    OK(cuModuleGetFunction(&increase, module, "increase"));
    OK(cuModuleGetFunction(&block_sum, module, "block_sum"));
    void *other = nullptr;
    EXPECT(cuModuleGetFunction(&other, module, "fill"), 500);
    EXPECT(cuModuleLoadData(&other, "no program"), 200);
    EXPECT(cuModuleLoadData(&other, "\x7f" "ELF"
                                    "000000000000000000000000000000000000000000000000000000000000"),
           200);
    size_t offset = 1, bytes = 0;
    OK(cuFuncGetParamInfo(increase, 0, &offset, &bytes));
    EXPECT(offset, 0);
    EXPECT(bytes, 32);
    EXPECT(cuFuncGetParamInfo(increase, 1, &offset, &bytes), 1);
  }
  ~Kernels() { OK(cuModuleUnload(module)); }

  int launch_increase(void *on, uint64_t from, uint64_t to, float factor, float summand) const {
    struct {
      uint64_t from, to, elements;
      float factor, summand;
    } arguments = {from, to, COUNT, factor, summand};
    void *parameters[] = {&arguments};
    // The arguments are copied: what follows must not matter.
    const int result = cuLaunchKernel(increase, 5, 1, 1, 64, 1, 1, 0, on, parameters, nullptr);
    memset(&arguments, 0xff, sizeof arguments);
    return result;
  }

  int launch_block_sum(void *on, uint64_t from, uint64_t to, unsigned blocks) const {
    struct {
      uint64_t from, to, elements;
    } arguments = {from, to, COUNT};
    void *parameters[] = {&arguments};
    return cuLaunchKernel(block_sum, blocks, 1, 1, 256, 1, 1, 0, on, parameters, nullptr);
  }
};

// Bytes go up on one stream, through a kernel on another, down on a third; events order them.
void events_order_streams(const Kernels &kernels) {
  void *up = stream(), *compute = stream(), *down = stream();
  void *copied = event(2), *computed = event(2), *read = event(2);
  float *from = pinned(COUNT), *to = pinned(COUNT);
  const uint64_t x = allocate(BYTES), y = allocate(BYTES);
  for (int round = 0; round < 10; round++) {
    // The host may write the buffer again when the copy from it has ended.
    OK(cuEventSynchronize(copied));
    for (size_t i = 0; i < COUNT; i++) from[i] = (float)round;
    OK(cuStreamWaitEvent(up, computed, 0));
    OK(cuMemcpyHtoDAsync_v2(x, from, BYTES, up));
    OK(cuEventRecord(copied, up));
    OK(cuStreamWaitEvent(compute, copied, 0));
    OK(cuStreamWaitEvent(compute, read, 0));
    OK(kernels.launch_increase(compute, x, y, 2.0f, 1.0f));
    OK(cuEventRecord(computed, compute));
    OK(cuStreamWaitEvent(down, computed, 0));
    OK(cuMemcpyDtoHAsync_v2(to, y, BYTES, down));
    OK(cuEventRecord(read, down));
    OK(cuEventSynchronize(read));
    for (size_t i = 0; i < COUNT; i++)
      if (to[i] != 2.0f * (float)round + 1.0f) {
        EXPECT(i, -1);
        break;
      }
  }
  for (void *one : {up, compute, down}) OK(cuStreamDestroy_v2(one));
  for (void *one : {copied, computed, read}) OK(cuEventDestroy_v2(one));
  for (uint64_t one : {x, y}) OK(cuMemFree_v2(one));
  for (float *one : {from, to}) OK(cuMemFreeHost(one));
}

void blocks_have_barriers(const Kernels &kernels) {
  void *one = stream(), *other = stream();
  float *sums = pinned(14);
  const uint64_t x = allocate(BYTES), y = allocate(14 * 4);
  OK(cuMemsetD32Async(x, 0x3f800000u, COUNT, one));
  OK(cuStreamSynchronize(one));
  // Two streams at once.
  OK(kernels.launch_block_sum(one, x, y, 7));
  OK(kernels.launch_block_sum(other, x, y + 28, 7));
  OK(cuStreamSynchronize(other));
  OK(cuMemcpyDtoHAsync_v2(sums, y, 14 * 4, one));
  OK(cuStreamSynchronize(one));
  float sum = 0;
  for (int i = 0; i < 14; i++) sum += sums[i];
  EXPECT(sum, 2 * COUNT);
  for (void *s : {one, other}) OK(cuStreamDestroy_v2(s));
  for (uint64_t m : {x, y}) OK(cuMemFree_v2(m));
  OK(cuMemFreeHost(sums));
}

void count(void *number) { ++*static_cast<int *>(number); }

// A capture of two streams, replayed with other numbers in the same memory.
void graphs_replay(const Kernels &kernels) {
  void *main = stream(), *side = stream();
  void *fork = event(2), *join = event(2);
  const uint64_t x = allocate(BYTES), y = allocate(BYTES), z = allocate(BYTES);
  float *to = pinned(COUNT);
  static int calls = 0;
  OK(cuStreamBeginCapture_v2(main, 1));
  int status = 0;
  OK(cuStreamIsCapturing(main, &status));
  EXPECT(status, 1);
  OK(kernels.launch_increase(main, x, y, 2.0f, 0.0f));
  OK(cuEventRecord(fork, main));
  OK(cuStreamWaitEvent(side, fork, 0));
  OK(cuStreamIsCapturing(side, &status));
  EXPECT(status, 1);
  OK(kernels.launch_increase(side, y, z, 1.0f, 1.0f));
  OK(cuLaunchHostFunc(side, count, &calls));
  OK(cuEventRecord(join, side));
  OK(kernels.launch_increase(main, x, x, 1.0f, 1.0f));
  OK(cuStreamWaitEvent(main, join, 0));
  OK(kernels.launch_increase(main, z, y, 1.0f, 100.0f));
  void *graph = nullptr, *executable = nullptr;
  OK(cuStreamEndCapture(main, &graph));
  OK(cuStreamIsCapturing(side, &status));
  EXPECT(status, 0);
  OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
  OK(cuGraphDestroy(graph));
  OK(cuMemsetD8Async(x, 0, BYTES, main));
  for (int round = 0; round < 5; round++) OK(cuGraphLaunch(executable, main));
  OK(cuMemcpyDtoHAsync_v2(to, y, BYTES, main));
  OK(cuStreamSynchronize(main));
  // x was 4 at the last one.
  EXPECT(to[0], 4 * 2 + 1 + 100);
  EXPECT(to[COUNT - 1], 4 * 2 + 1 + 100);
  EXPECT(calls, 5);
  OK(cuGraphExecDestroy(executable));
  EXPECT(cuGraphLaunch(executable, main), 1);
  for (void *s : {main, side}) OK(cuStreamDestroy_v2(s));
  for (void *e : {fork, join}) OK(cuEventDestroy_v2(e));
  for (uint64_t m : {x, y, z}) OK(cuMemFree_v2(m));
  OK(cuMemFreeHost(to));
}

// Begins a capture, does what is not allowed, and expects the end to fail.
template <typename Disturb>
void spoils_a_capture(int line, int error, int end, Disturb disturb) {
  void *main = stream();
  void *graph = main;
  OK(cuStreamBeginCapture_v2(main, 1));
  expect(line, disturb(main), error);
  expect(line, cuStreamEndCapture(main, &graph), end);
  expect(line, graph == nullptr, 1);
  // The stream is of use again.
  OK(cuStreamSynchronize(main));
  OK(cuStreamDestroy_v2(main));
}

void ends_in_its_own_thread() {
  void *main = stream();
  void *graph = nullptr;
  OK(cuStreamBeginCapture_v2(main, 1));
  std::thread([&] { EXPECT(cuStreamEndCapture(main, &graph), 908); }).join();
  OK(cuStreamEndCapture(main, &graph));
  OK(cuGraphDestroy(graph));
  OK(cuStreamDestroy_v2(main));
}

void captures_are_strict() {
  const uint64_t x = allocate(256);
  uint64_t other = 0;
  void *host = nullptr;
  void *outside = stream();
  void *recorded = event(2);
  OK(cuEventRecord(recorded, outside));
  spoils_a_capture(__LINE__, 900, 901, [](void *s) { return cuStreamSynchronize(s); });
  spoils_a_capture(__LINE__, 900, 901, [](void *s) { return cuStreamQuery(s); });
  spoils_a_capture(__LINE__, 900, 901, [](void *) { return cuCtxSynchronize(); });
  spoils_a_capture(__LINE__, 900, 901, [&](void *) { return cuMemAlloc_v2(&other, 256); });
  spoils_a_capture(__LINE__, 900, 901, [&](void *) { return cuMemFree_v2(x); });
  spoils_a_capture(__LINE__, 900, 901, [&](void *) { return cuMemHostAlloc(&host, 256, 0); });
  spoils_a_capture(__LINE__, 900, 901, [&](void *) { return cuEventQuery(recorded); });
  spoils_a_capture(__LINE__, 905, 901, [&](void *s) { return cuStreamWaitEvent(s, recorded, 0); });
  spoils_a_capture(__LINE__, 0, 904, [&](void *s) {
    OK(cuEventRecord(recorded, s));
    OK(cuStreamWaitEvent(outside, recorded, 0));
    return cuMemsetD8Async(x, 0, 256, outside);
  });
  ends_in_its_own_thread();
  // Another thread and another stream may go on.
  void *main = stream();
  void *graph = nullptr;
  OK(cuStreamBeginCapture_v2(main, 1));
  OK(cuMemsetD8Async(x, 1, 256, outside));
  OK(cuEventRecord(recorded, outside));
  OK(cuMemsetD8Async(x, 2, 256, main));
  OK(cuStreamEndCapture(main, &graph));
  OK(cuGraphDestroy(graph));
  for (void *s : {main, outside}) OK(cuStreamDestroy_v2(s));
  OK(cuEventDestroy_v2(recorded));
  OK(cuMemFree_v2(x));
}

void ranges_are_checked() {
  void *one = stream();
  char bytes[64] = {};
  size_t free = 0, total = 0, later = 0;
  OK(cuMemGetInfo_v2(&free, &total));
  const uint64_t x = allocate(64), y = allocate(64);
  EXPECT(cuMemcpyHtoDAsync_v2(x + 1, bytes, 64, one), 1);
  EXPECT(cuMemcpyDtoHAsync_v2(bytes, x - 1, 2, one), 1);
  EXPECT(cuMemcpyDtoDAsync_v2(y, x, 65, one), 1);
  EXPECT(cuMemsetD8Async(x + 60, 0, 5, one), 1);
  EXPECT(cuMemFree_v2(x + 1), 1);
  uint64_t more = 0;
  EXPECT(cuMemAlloc_v2(&more, total), 2);
  // Fresh memory is not 0, and freed memory is none.
  OK(cuMemcpyDtoHAsync_v2(bytes, x, 64, one));
  EXPECT((unsigned char)bytes[63], 0xff);
  OK(cuMemFree_v2(x));
  EXPECT(cuMemcpyDtoHAsync_v2(bytes, x, 64, one), 1);
  EXPECT(cuMemFree_v2(x), 1);
  OK(cuMemFree_v2(y));
  OK(cuMemGetInfo_v2(&later, &total));
  EXPECT(later, free);
  OK(cuStreamDestroy_v2(one));
  EXPECT(cuStreamSynchronize(one), 400);
}

void times_are_measured() {
  void *one = stream();
  void *start = event(), *end = event(), *plain = event(2);
  float milliseconds = -1;
  OK(cuEventRecord(start, one));
  OK(cuLaunchHostFunc(
      one, [](void *) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }, nullptr));
  OK(cuEventRecord(end, one));
  EXPECT(cuEventQuery(end), 600);
  OK(cuEventSynchronize(end));
  OK(cuEventElapsedTime_v2(&milliseconds, start, end));
  EXPECT(milliseconds >= 4.9f, 1);
  EXPECT(cuEventElapsedTime_v2(&milliseconds, start, plain), 400);
  for (void *e : {start, end, plain}) OK(cuEventDestroy_v2(e));
  OK(cuStreamDestroy_v2(one));
}

}  // namespace

int main() {
  uint64_t address = 0;
  EXPECT(cuMemAlloc_v2(&address, 64), 3);
  OK(cuInit(0));
  EXPECT(cuMemAlloc_v2(&address, 64), 201);
  void *context = nullptr;
  OK(cuDevicePrimaryCtxRetain(&context, 0));
  OK(cuCtxSetCurrent(context));
  {
    const Kernels kernels;
    events_order_streams(kernels);
    blocks_have_barriers(kernels);
    graphs_replay(kernels);
  }
  captures_are_strict();
  ranges_are_checked();
  times_are_measured();
  failures += cudnn_graph_failures();
  OK(cuDevicePrimaryCtxRelease_v2(0));
  if (failures > 0) return 1;
  printf("selftest: all is as CUDA has it\n");
  return 0;
}
