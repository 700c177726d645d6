// The stand-in for NCCL under sanitizers: tests/nccl/build --selftest. Ranks are threads here, but for
// those that are to die. Streams are threads of this file, so that CUDA's stand-in is not needed.
#define _GNU_SOURCE
#include "abi.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                                     \
    }                                                                              \
  } while (0)

// ------------------------------------------------------------------------------------ streams

struct task {
  void (*function)(void *);
  void *argument;
  struct task *next;
};

struct CUstream_st {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct task *first, **end;
  int is_busy, is_closed;
};

static void *work(void *argument) {
  cudaStream_t s = argument;
  pthread_mutex_lock(&s->lock);
  for (;;) {
    while (!s->first && !s->is_closed) pthread_cond_wait(&s->changed, &s->lock);
    struct task *task = s->first;
    if (!task) break;
    s->first = task->next;
    if (!s->first) s->end = &s->first;
    s->is_busy = 1;
    pthread_mutex_unlock(&s->lock);
    task->function(task->argument);
    free(task);
    pthread_mutex_lock(&s->lock);
    s->is_busy = 0;
    pthread_cond_broadcast(&s->changed);
  }
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

static cudaStream_t stream_open(void) {
  cudaStream_t s = calloc(1, sizeof *s);
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->changed, NULL);
  s->end = &s->first;
  CHECK(pthread_create(&s->thread, NULL, work, s) == 0);
  return s;
}

__attribute__((visibility("default"))) int cuLaunchHostFunc(cudaStream_t s, void (*function)(void *),
                                                            void *argument) {
  struct task *task = malloc(sizeof *task);
  *task = (struct task){function, argument, NULL};
  pthread_mutex_lock(&s->lock);
  *s->end = task;
  s->end = &task->next;
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->lock);
  return 0;
}

static void stream_wait(cudaStream_t s) {
  pthread_mutex_lock(&s->lock);
  while (s->first || s->is_busy) pthread_cond_wait(&s->changed, &s->lock);
  pthread_mutex_unlock(&s->lock);
}

static void stream_close(cudaStream_t s) {
  pthread_mutex_lock(&s->lock);
  s->is_closed = 1;
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->lock);
  pthread_join(s->thread, NULL);
  free(s);
}

// ------------------------------------------------------------------------------------ a rank

static ncclConfig_t config(void) {
  ncclConfig_t c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.magic = 0xcafebeef;
  c.version = 22809;
  c.blocking = 0;
  return c;
}

static ncclResult_t settled(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) {
    usleep(1000);
    CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  }
  return state;
}

static ncclComm_t join_group(int world, int rank, ncclUniqueId id) {
  ncclConfig_t c = config();
  ncclComm_t comm;
  CHECK(ncclCommInitRankConfig(&comm, world, id, rank, &c) == ncclInProgress);
  CHECK(settled(comm) == ncclSuccess);
  return comm;
}

static void must(ncclComm_t comm, ncclResult_t result) {
  CHECK(result == ncclSuccess || (result == ncclInProgress && settled(comm) == ncclSuccess));
}

static float number(int rank, size_t i) {
  return (float)((i * 7 + (size_t)rank * 13) % 101) / 8.0f - 6.0f;
}

enum { LENGTH = 200001 };

static void fill(float *numbers, int rank, size_t count) {
  for (size_t i = 0; i < count; i++) numbers[i] = number(rank, i);
}

static void average(ncclComm_t comm, cudaStream_t stream, int world, int rank) {
  float *numbers = malloc(sizeof(float) * LENGTH);
  for (int round = 0; round < 3; round++) {
    fill(numbers, rank, LENGTH);
    must(comm, ncclAllReduce(numbers, numbers, LENGTH, ncclFloat32, ncclAvg, comm, stream));
    stream_wait(stream);
    float factor = (float)(1.0 / world);
    for (size_t i = 0; i < LENGTH; i++) {
      float sum = number(0, i) * factor;
      for (int other = 1; other < world; other++) sum += number(other, i) * factor;
      CHECK(memcmp(&numbers[i], &sum, sizeof sum) == 0);
    }
  }
  free(numbers);
}

// With a factor of each rank's own, two in a group, and what is enqueued behind them.
static void weigh(ncclComm_t comm, cudaStream_t stream, int world, int rank) {
  float first[3] = {1, 2, 3}, second[2] = {10, 20}, factor = (float)(rank + 1);
  ncclRedOp_t op;
  CHECK(ncclRedOpCreatePreMulSum(&op, &factor, ncclFloat32, ncclScalarHostImmediate, comm) ==
        ncclSuccess);
  CHECK(op >= ncclNumOps);
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclAllReduce(first, first, 3, ncclFloat32, op, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(second, second, 2, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  must(comm, ncclGroupEnd());
  CHECK(ncclRedOpDestroy(op, comm) == ncclSuccess);
  CHECK(ncclRedOpDestroy(op, comm) == ncclInvalidArgument);
  CHECK(ncclAllReduce(first, first, 3, ncclFloat32, op, comm, stream) == ncclInvalidArgument);
  stream_wait(stream);
  float factors = (float)(world * (world + 1) / 2);
  CHECK(first[0] == factors && first[2] == 3 * factors);
  CHECK(second[1] == 20.0f * (float)world);
}

static void narrow(ncclComm_t comm, cudaStream_t stream, int world) {
  // 1 and 0.5 in bf16.
  uint16_t numbers[2] = {0x3f80, 0x3f00};
  must(comm, ncclAllReduce(numbers, numbers, 2, ncclBfloat16, ncclSum, comm, stream));
  stream_wait(stream);
  static const uint16_t sums[5] = {0, 0x3f80, 0x4000, 0x4040, 0x4080};
  CHECK(numbers[0] == sums[world] && numbers[1] == sums[world] - 0x80);
}

static void spread(ncclComm_t comm, cudaStream_t stream, int world, int rank) {
  float *numbers = malloc(sizeof(float) * LENGTH);
  for (int root = 0; root < world; root++) {
    fill(numbers, rank, LENGTH);
    must(comm, ncclBroadcast(numbers, numbers, LENGTH, ncclFloat32, root, comm, stream));
    stream_wait(stream);
    for (size_t i = 0; i < LENGTH; i++) CHECK(numbers[i] == number(root, i));
  }
  free(numbers);
}

struct seat {
  int world, rank;
  ncclUniqueId id;
  void (*body)(struct seat *);
};

static void everything(struct seat *seat) {
  cudaStream_t stream = stream_open();
  ncclComm_t comm = join_group(seat->world, seat->rank, seat->id);
  average(comm, stream, seat->world, seat->rank);
  weigh(comm, stream, seat->world, seat->rank);
  narrow(comm, stream, seat->world);
  spread(comm, stream, seat->world, seat->rank);
  CHECK(ncclCommFinalize(comm) == ncclInProgress);
  CHECK(settled(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
  stream_close(stream);
}

// How many ranks have got away.
static atomic_int away;

// Rank 1 never calls: the others abort what they have enqueued, and what comes behind it. It is there
// until they have.
static void abandoned(struct seat *seat) {
  cudaStream_t stream = stream_open();
  ncclComm_t comm = join_group(seat->world, seat->rank, seat->id);
  float numbers[8] = {0}, more[8] = {0};
  if (seat->rank != 1) {
    must(comm, ncclAllReduce(numbers, numbers, 8, ncclFloat32, ncclSum, comm, stream));
    must(comm, ncclAllReduce(more, more, 8, ncclFloat32, ncclSum, comm, stream));
    usleep(30000);
  } else {
    for (int look = 0; away < seat->world - 1; look++) {
      CHECK(look < 10000);
      usleep(1000);
    }
    away = 0;
  }
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  stream_wait(stream);
  if (seat->rank != 1) away++;
  stream_close(stream);
}

// Different lengths are an error of all, and an abort ends them.
static void different(struct seat *seat) {
  cudaStream_t stream = stream_open();
  ncclComm_t comm = join_group(seat->world, seat->rank, seat->id);
  float numbers[8] = {0};
  size_t count = seat->rank == 0 ? 8 : 4;
  ncclResult_t result = ncclAllReduce(numbers, numbers, count, ncclFloat32, ncclSum, comm, stream);
  CHECK(result == ncclInProgress);
  ncclResult_t state = ncclSuccess;
  while (state == ncclSuccess || state == ncclInProgress) {
    usleep(1000);
    CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  }
  CHECK(state == ncclInternalError || state == ncclRemoteError);
  CHECK(ncclGetLastError(comm)[0] != 0);
  // So that the others have read it.
  usleep(50000);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  stream_close(stream);
}

static void *in_thread(void *argument) {
  struct seat *seat = argument;
  seat->body(seat);
  return NULL;
}

static void in_threads(int world, void (*body)(struct seat *)) {
  pthread_t threads[8];
  struct seat seats[8];
  ncclUniqueId id;
  CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  for (int rank = 0; rank < world; rank++) {
    seats[rank] = (struct seat){world, rank, id, body};
    CHECK(pthread_create(&threads[rank], NULL, in_thread, &seats[rank]) == 0);
  }
  for (int rank = 0; rank < world; rank++) pthread_join(threads[rank], NULL);
}

// ------------------------------------------------------------------------------------ processes

// Rank 1 is another process, which ends between two collectives.
static int doomed(const char *hexadecimal) {
  ncclUniqueId id;
  for (size_t i = 0; i < sizeof id; i++) {
    unsigned byte;
    CHECK(sscanf(hexadecimal + 2 * i, "%2x", &byte) == 1);
    id.internal[i] = (char)byte;
  }
  cudaStream_t stream = stream_open();
  ncclComm_t comm = join_group(2, 1, id);
  float number = 1;
  must(comm, ncclAllReduce(&number, &number, 1, ncclFloat32, ncclSum, comm, stream));
  stream_wait(stream);
  CHECK(number == 3);
  _exit(0);
}

static void death(const char *program) {
  ncclUniqueId id;
  CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  char text[2 * sizeof id + 1];
  for (size_t i = 0; i < sizeof id; i++) sprintf(text + 2 * i, "%02x", (unsigned char)id.internal[i]);
  pid_t child = fork();
  if (child == 0) {
    execl(program, program, text, NULL);
    _exit(1);
  }
  cudaStream_t stream = stream_open();
  ncclComm_t comm = join_group(2, 0, id);
  float number = 2;
  must(comm, ncclAllReduce(&number, &number, 1, ncclFloat32, ncclSum, comm, stream));
  CHECK(ncclAllReduce(&number, &number, 1, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  ncclResult_t state = ncclSuccess;
  while (state == ncclSuccess) {
    usleep(1000);
    CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  }
  CHECK(state == ncclRemoteError);
  // It takes no more.
  CHECK(ncclAllReduce(&number, &number, 1, ncclFloat32, ncclSum, comm, stream) == ncclRemoteError);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  stream_close(stream);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

// A rank that never comes: the others abort their initialisation.
static void never_met(void) {
  ncclUniqueId id;
  CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  ncclConfig_t c = config();
  ncclComm_t comm;
  CHECK(ncclCommInitRankConfig(&comm, 2, id, 0, &c) == ncclInProgress);
  usleep(50000);
  ncclResult_t state;
  CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess && state == ncclInProgress);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  c.magic = 1;
  CHECK(ncclCommInitRankConfig(&comm, 2, id, 0, &c) == ncclInvalidArgument);
}

int main(int count, char **arguments) {
  if (count == 2) return doomed(arguments[1]);
  int version;
  CHECK(ncclGetVersion(&version) == ncclSuccess && version == 22809);
  death(arguments[0]);
  for (int world = 1; world <= 4; world++) in_threads(world, everything);
  for (int world = 2; world <= 3; world++) {
    in_threads(world, abandoned);
    in_threads(world, different);
  }
  never_met();
  // Threads that end by themselves after an abort have ended.
  usleep(200000);
  puts("selftest: passed");
  return 0;
}
