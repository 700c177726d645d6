// The collectives of the stand-in: what is enqueued, and what runs on the thread of its stream.
#define _GNU_SOURCE
#include "communicator.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, MAGIC = 0x5ca1ab1e };

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
    ncclResult_t result = (ncclResult_t)number_behind("error_as=", ncclUnhandledCudaError);
    set_state(comm, result, "Cuda failure 'an illegal memory access'");
    is_broken = 1;
  }
  if (is_broken) {
    wait_for_abort(comm);
  } else if (!is_aborted && perform(o) == LOST) {
    if (!word("hang_lost")) {
      set_state(comm, lost(), "socketProgress: Connection closed by remote peer");
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
