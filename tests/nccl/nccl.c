// A stand-in for NCCL: ranks that average numbers in host memory, with NCCL's own calls, its order of
// streams, and its ways to fail. It lets worker/src/collective/nccl run where there is no GPU.
//
// Collectives are enqueued by cuLaunchHostFunc, so they run when what stands before them on their
// stream has run. Sums are formed in f32 and in rank order: the same ranks get the same bits. As in
// NCCL a factor (ncclAvg's 1/W, or that of ncclRedOpCreatePreMulSum) is of the numbers' own type and
// is applied before the sum. After an error what is enqueued stays where it is until ncclCommAbort.
//
// SYNFIRE_STAND_IN_NCCL has words, separated by commas, for tests of failures:
//   hang_init        this rank's ncclCommInitRankConfig never ends
//   hang_lost        that another rank is gone is never reported
//   error_after=N    the collective behind N others fails by itself: ncclUnhandledCudaError
//   version=N        what ncclGetVersion says
#define _GNU_SOURCE
#include "abi.h"

#include "layout.h"
#include "ranks.h"

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum { VERSION = 22809, MOST_FACTORS = 64, CHUNK = 1 << 16, MAGIC = 0x5ca1ab1e };

struct ncclComm {
  struct ranks ranks;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  // Below: under the lock.
  ncclResult_t state;
  char last_error[256];
  int is_aborted, is_non_blocking;
  // Collectives that are enqueued and have not ended.
  int under_way;
  // Who may still touch this: the caller, threads, and what is under way.
  int holders;
  uint64_t issued;
  int is_used[MOST_FACTORS];
  float factors[MOST_FACTORS];
  // Below: of collectives, which run one after the other.
  uint64_t ended;
  char *chunks[MOST_RANKS];
  void *context;
  ncclUniqueId id;
};

enum kind { ALL_REDUCE = 1, BROADCAST = 2 };

struct operation {
  struct ncclComm *comm;
  enum kind kind;
  const void *from;
  void *to;
  size_t count;
  ncclDataType_t type;
  float factor;
  int root;
  cudaStream_t stream;
  struct operation *next;
};

static const char *word(const char *name) {
  const char *words = getenv("SYNFIRE_STAND_IN_NCCL");
  return words ? strstr(words, name) : NULL;
}

static long number_behind(const char *name, long otherwise) {
  const char *found = word(name);
  return found ? strtol(found + strlen(name), NULL, 10) : otherwise;
}

// ------------------------------------------------------------------------------------ the driver

static void *driver_symbol(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  if (found) return found;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return driver ? dlsym(driver, name) : NULL;
}

static int launch_host_function(cudaStream_t stream, void (*function)(void *), void *argument) {
  int (*launch)(cudaStream_t, void (*)(void *), void *) = driver_symbol("cuLaunchHostFunc");
  return launch ? launch(stream, function, argument) : -1;
}

static void *current_context(void) {
  void *context = NULL;
  int (*get)(void **) = driver_symbol("cuCtxGetCurrent");
  if (get) get(&context);
  return context;
}

static void enter_context(void *context) {
  int (*set)(void *) = driver_symbol("cuCtxSetCurrent");
  if (set && context) set(context);
}

// ------------------------------------------------------------------------------------ life

static void hold(struct ncclComm *comm) {
  pthread_mutex_lock(&comm->lock);
  comm->holders++;
  pthread_mutex_unlock(&comm->lock);
}

static void release(struct ncclComm *comm) {
  pthread_mutex_lock(&comm->lock);
  int left = --comm->holders;
  pthread_mutex_unlock(&comm->lock);
  if (left > 0) return;
  ranks_close(&comm->ranks);
  close(comm->ranks.stop[0]);
  close(comm->ranks.stop[1]);
  for (int rank = 0; rank < MOST_RANKS; rank++) free(comm->chunks[rank]);
  pthread_mutex_destroy(&comm->lock);
  pthread_cond_destroy(&comm->changed);
  free(comm);
}

static void set_state(struct ncclComm *comm, ncclResult_t state, const char *text) {
  pthread_mutex_lock(&comm->lock);
  // The first error stays.
  if (comm->state == ncclSuccess || comm->state == ncclInProgress) {
    comm->state = state;
    if (text) snprintf(comm->last_error, sizeof comm->last_error, "%s", text);
  }
  pthread_cond_broadcast(&comm->changed);
  pthread_mutex_unlock(&comm->lock);
}

static void wait_for_abort(struct ncclComm *comm) {
  struct pollfd stop = {.fd = comm->ranks.stop[0], .events = POLLIN};
  while (poll(&stop, 1, -1) <= 0) {
  }
}

// A thread that ends by itself. `argument` has to hold its communicator.
static int spawn(void *(*body)(void *), void *argument) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, argument) != 0) return 0;
  pthread_detach(thread);
  return 1;
}

static void *initialise(void *argument) {
  struct ncclComm *comm = argument;
  if (word("hang_init")) wait_for_abort(comm);
  switch (ranks_meet(&comm->ranks, &comm->id)) {
    case MET: set_state(comm, ncclSuccess, NULL); break;
    case STOPPED: break;
    case LOST: set_state(comm, ncclRemoteError, "socketProgress: remote process exited"); break;
  }
  release(comm);
  return NULL;
}

API ncclResult_t ncclGetVersion(int *version) {
  if (!version) return ncclInvalidArgument;
  *version = (int)number_behind("version=", VERSION);
  return ncclSuccess;
}

API ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  if (!id) return ncclInvalidArgument;
  return ranks_id(id) ? ncclSuccess : ncclSystemError;
}

static int is_valid(const ncclConfig_t *config) {
  return config->size == sizeof *config && config->magic == 0xcafebeef &&
         config->version >= 20000 && config->version <= VERSION &&
         (config->blocking == INT_MIN || config->blocking == 0 || config->blocking == 1);
}

API ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int nranks, ncclUniqueId id, int rank,
                                        ncclConfig_t *config) {
  if (!out || nranks < 1 || nranks > MOST_RANKS || rank < 0 || rank >= nranks) {
    return ncclInvalidArgument;
  }
  if (config && !is_valid(config)) return ncclInvalidArgument;
  struct ncclComm *comm = calloc(1, sizeof *comm);
  if (!comm || pipe(comm->ranks.stop) != 0) {
    free(comm);
    return ncclSystemError;
  }
  pthread_mutex_init(&comm->lock, NULL);
  pthread_cond_init(&comm->changed, NULL);
  comm->ranks.world = nranks;
  comm->ranks.rank = rank;
  memset(comm->ranks.sockets, -1, sizeof comm->ranks.sockets);
  comm->id = id;
  comm->state = ncclInProgress;
  comm->is_non_blocking = config && config->blocking == 0;
  comm->context = current_context();
  // The caller, the thread, and this call.
  comm->holders = 3;
  *out = comm;
  if (!spawn(initialise, comm)) return ncclSystemError;
  ncclResult_t result = ncclInProgress;
  pthread_mutex_lock(&comm->lock);
  if (!comm->is_non_blocking) {
    while (comm->state == ncclInProgress && !comm->is_aborted) {
      pthread_cond_wait(&comm->changed, &comm->lock);
    }
    result = comm->state;
  }
  pthread_mutex_unlock(&comm->lock);
  release(comm);
  return result;
}

API ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
  if (!comm || !state) return ncclInvalidArgument;
  pthread_mutex_lock(&comm->lock);
  *state = comm->state;
  pthread_mutex_unlock(&comm->lock);
  return ncclSuccess;
}

static void wait_until_idle(struct ncclComm *comm) {
  pthread_mutex_lock(&comm->lock);
  while (comm->under_way > 0) pthread_cond_wait(&comm->changed, &comm->lock);
  pthread_mutex_unlock(&comm->lock);
}

static void *finalise(void *argument) {
  struct ncclComm *comm = argument;
  wait_until_idle(comm);
  set_state(comm, ncclSuccess, NULL);
  release(comm);
  return NULL;
}

API ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (!comm) return ncclInvalidArgument;
  pthread_mutex_lock(&comm->lock);
  ncclResult_t before = comm->state;
  if (before == ncclSuccess) comm->state = ncclInProgress;
  pthread_mutex_unlock(&comm->lock);
  if (before != ncclSuccess) return before == ncclInProgress ? ncclInvalidUsage : before;
  hold(comm);
  if (!spawn(finalise, comm)) return ncclSystemError;
  return ncclInProgress;
}

API ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!comm) return ncclInvalidArgument;
  pthread_mutex_lock(&comm->lock);
  comm->is_aborted = 1;
  pthread_cond_broadcast(&comm->changed);
  pthread_mutex_unlock(&comm->lock);
  ssize_t written = write(comm->ranks.stop[1], "", 1);
  release(comm);
  return written == 1 ? ncclSuccess : ncclSystemError;
}

API ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm) return ncclInvalidArgument;
  wait_until_idle(comm);
  return ncclCommAbort(comm);
}

API const char *ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
  }
  return "unknown result code";
}

API const char *ncclGetLastError(ncclComm_t comm) {
  return comm ? comm->last_error : "";
}

// ------------------------------------------------------------------------------------ arithmetic

static float from_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

// To the nearest, ties to even; NaN stays NaN.
static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static size_t width(ncclDataType_t type) { return type == ncclBfloat16 ? 2 : 4; }

// One number as it travels: by the factor, in its own type.
static void scale(const void *from, void *to, size_t count, ncclDataType_t type, float factor) {
  const float *wide = from;
  const uint16_t *narrow = from;
  for (size_t i = 0; i < count; i++) {
    if (type == ncclBfloat16) {
      ((uint16_t *)to)[i] = to_bf16(from_bf16(narrow[i]) * factor);
    } else {
      ((float *)to)[i] = wide[i] * factor;
    }
  }
}

static void sum(char *const parts[], int world, void *to, size_t count, ncclDataType_t type) {
  for (size_t i = 0; i < count; i++) {
    float total = 0.0f;
    for (int rank = 0; rank < world; rank++) {
      float part = type == ncclBfloat16 ? from_bf16(((uint16_t *)(void *)parts[rank])[i])
                                        : ((float *)(void *)parts[rank])[i];
      total = rank == 0 ? part : total + part;
    }
    if (type == ncclBfloat16) {
      ((uint16_t *)to)[i] = to_bf16(total);
    } else {
      ((float *)to)[i] = total;
    }
  }
}

// ------------------------------------------------------------------------------------ collectives

// What all ranks have to have called for alike.
struct header {
  uint32_t magic, kind, type;
  int32_t root;
  uint64_t sequence, count;
};

static enum met reduce(struct operation *o, size_t begin, size_t count) {
  struct ranks *ranks = &o->comm->ranks;
  size_t bytes = count * width(o->type), offset = begin * width(o->type);
  char *own = o->comm->chunks[ranks->rank];
  scale((const char *)o->from + offset, own, count, o->type, o->factor);
  enum met met = ranks_exchange(ranks, own, o->comm->chunks, bytes);
  if (met == MET) sum(o->comm->chunks, ranks->world, (char *)o->to + offset, count, o->type);
  return met;
}

static enum met broadcast(struct operation *o, size_t begin, size_t count) {
  struct ranks *ranks = &o->comm->ranks;
  size_t bytes = count * width(o->type), offset = begin * width(o->type);
  char *to = (char *)o->to + offset;
  if (ranks->rank != o->root) return ranks_receive(ranks, o->root, to, bytes);
  if (o->from != o->to) memmove(to, (const char *)o->from + offset, bytes);
  return ranks_send(ranks, to, bytes);
}

static enum met agree(struct operation *o) {
  struct ncclComm *comm = o->comm;
  struct header ours = {MAGIC, o->kind, o->type, o->root, comm->ended, o->count};
  enum met met = ranks_exchange(&comm->ranks, &ours, comm->chunks, sizeof ours);
  for (int rank = 0; met == MET && rank < comm->ranks.world; rank++) {
    if (rank == comm->ranks.rank || memcmp(comm->chunks[rank], &ours, sizeof ours) == 0) continue;
    set_state(comm, ncclInternalError, "the ranks called for different collectives");
    wait_for_abort(comm);
    return STOPPED;
  }
  return met;
}

static enum met perform(struct operation *o) {
  struct ncclComm *comm = o->comm;
  for (int rank = 0; rank < comm->ranks.world; rank++) {
    if (!comm->chunks[rank]) comm->chunks[rank] = malloc(CHUNK * sizeof(float));
    if (!comm->chunks[rank]) return LOST;
  }
  enum met met = agree(o);
  for (size_t begin = 0; met == MET && begin < o->count; begin += CHUNK) {
    size_t count = o->count - begin < CHUNK ? o->count - begin : CHUNK;
    met = o->kind == ALL_REDUCE ? reduce(o, begin, count) : broadcast(o, begin, count);
  }
  return met;
}

// On the thread of the stream.
static void run_operation(void *argument) {
  struct operation *o = argument;
  struct ncclComm *comm = o->comm;
  pthread_mutex_lock(&comm->lock);
  int is_aborted = comm->is_aborted, is_broken = comm->state != ncclSuccess && comm->state != ncclInProgress;
  pthread_mutex_unlock(&comm->lock);
  if (!is_aborted && (long)comm->ended == number_behind("error_after=", -1)) {
    set_state(comm, ncclUnhandledCudaError, "Cuda failure 'an illegal memory access'");
    is_broken = 1;
  }
  if (is_broken) {
    wait_for_abort(comm);
  } else if (!is_aborted && perform(o) == LOST) {
    if (!word("hang_lost")) {
      set_state(comm, ncclRemoteError, "socketProgress: Connection closed by remote peer");
    }
    wait_for_abort(comm);
  }
  comm->ended++;
  pthread_mutex_lock(&comm->lock);
  comm->under_way--;
  pthread_cond_broadcast(&comm->changed);
  pthread_mutex_unlock(&comm->lock);
  free(o);
  release(comm);
}

static ncclResult_t launch(struct operation *first) {
  ncclResult_t result = ncclSuccess;
  while (first) {
    struct operation *next = first->next;
    struct ncclComm *comm = first->comm;
    pthread_mutex_lock(&comm->lock);
    comm->under_way++;
    comm->holders++;
    pthread_mutex_unlock(&comm->lock);
    if (launch_host_function(first->stream, run_operation, first) != 0) {
      pthread_mutex_lock(&comm->lock);
      comm->under_way--;
      pthread_mutex_unlock(&comm->lock);
      free(first);
      release(comm);
      result = ncclUnhandledCudaError;
    }
    first = next;
  }
  return result;
}

struct late {
  struct ncclComm *comm;
  struct operation *first;
};

// As where connections are made when they are first needed: what was called for is enqueued a little
// later.
static void *launch_late(void *argument) {
  struct late late = *(struct late *)argument;
  free(argument);
  usleep(20000);
  enter_context(late.comm->context);
  ncclResult_t result = launch(late.first);
  set_state(late.comm, result, result == ncclSuccess ? NULL : "cuLaunchHostFunc failed");
  release(late.comm);
  return NULL;
}

static ncclResult_t issue(struct operation *first) {
  if (!first) return ncclSuccess;
  struct ncclComm *comm = first->comm;
  pthread_mutex_lock(&comm->lock);
  ncclResult_t state = comm->state;
  int is_late = state == ncclSuccess && comm->is_non_blocking && comm->issued++ == 0;
  if (is_late) comm->state = ncclInProgress;
  pthread_mutex_unlock(&comm->lock);
  // Nobody may call while a call is under way.
  if (state == ncclInProgress) state = ncclInvalidUsage;
  if (state == ncclSuccess && !is_late) return launch(first);
  if (state == ncclSuccess) {
    struct late *late = malloc(sizeof *late);
    *late = (struct late){comm, first};
    hold(comm);
    if (spawn(launch_late, late)) return ncclInProgress;
    state = ncclSystemError;
  }
  while (first) {
    struct operation *next = first->next;
    free(first);
    first = next;
  }
  return state;
}

static __thread int group_depth;
static __thread struct operation *group_first, **group_end;

API ncclResult_t ncclGroupStart(void) {
  if (group_depth++ == 0) {
    group_first = NULL;
    group_end = &group_first;
  }
  return ncclSuccess;
}

API ncclResult_t ncclGroupEnd(void) {
  if (group_depth == 0) return ncclInvalidUsage;
  return --group_depth == 0 ? issue(group_first) : ncclSuccess;
}

static ncclResult_t call(struct operation operation) {
  struct ncclComm *comm = operation.comm;
  int is_valid_type = operation.type == ncclFloat32 || operation.type == ncclBfloat16;
  int has_memory = operation.count == 0 || (operation.from && operation.to);
  if (!comm || !is_valid_type || !has_memory) return ncclInvalidArgument;
  if (operation.root < 0 || operation.root >= comm->ranks.world) return ncclInvalidArgument;
  struct operation *o = malloc(sizeof *o);
  *o = operation;
  if (group_depth == 0) return issue(o);
  *group_end = o;
  group_end = &o->next;
  return ncclSuccess;
}

API ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (!comm) return ncclInvalidArgument;
  float factor = 1.0f;
  int place = (int)op - ncclNumOps;
  if (op == ncclAvg) {
    factor = (float)(1.0 / comm->ranks.world);
    if (type == ncclBfloat16) factor = from_bf16(to_bf16(factor));
  } else if (op != ncclSum) {
    pthread_mutex_lock(&comm->lock);
    int is_known = place >= 0 && place < MOST_FACTORS && comm->is_used[place];
    if (is_known) factor = comm->factors[place];
    pthread_mutex_unlock(&comm->lock);
    if (!is_known) return ncclInvalidArgument;
  }
  return call((struct operation){comm, ALL_REDUCE, from, to, count, type, factor, 0, stream, NULL});
}

API ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                               int root, ncclComm_t comm, cudaStream_t stream) {
  return call((struct operation){comm, BROADCAST, from, to, count, type, 1.0f, root, stream, NULL});
}

API ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                          ncclScalarResidence_t residence, ncclComm_t comm) {
  if (!op || !scalar || !comm || residence != ncclScalarHostImmediate) return ncclInvalidArgument;
  if (type != ncclFloat32 && type != ncclBfloat16) return ncclInvalidArgument;
  ncclResult_t result = ncclInvalidUsage;
  pthread_mutex_lock(&comm->lock);
  for (int place = 0; place < MOST_FACTORS && result != ncclSuccess; place++) {
    if (comm->is_used[place]) continue;
    comm->is_used[place] = 1;
    comm->factors[place] = type == ncclBfloat16 ? from_bf16(*(uint16_t *)scalar) : *(float *)scalar;
    *op = (ncclRedOp_t)(ncclNumOps + place);
    result = ncclSuccess;
  }
  pthread_mutex_unlock(&comm->lock);
  return result;
}

API ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm) {
  int place = (int)op - ncclNumOps;
  if (!comm || place < 0 || place >= MOST_FACTORS) return ncclInvalidArgument;
  pthread_mutex_lock(&comm->lock);
  int was_used = comm->is_used[place];
  comm->is_used[place] = 0;
  pthread_mutex_unlock(&comm->lock);
  return was_used ? ncclSuccess : ncclInvalidArgument;
}
