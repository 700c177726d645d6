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
//   lost_as=R        that another rank is gone is reported as this result; ncclRemoteError
//   error_after=N    the collective behind N others fails by itself
//   error_as=R       with this result; ncclUnhandledCudaError
//   version=N        what ncclGetVersion says
#define _GNU_SOURCE
#include "abi.h"

#include "layout.h"

#include "communicator.h"

#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VERSION = 22809 };

const char *word(const char *name) {
  const char *words = getenv("SYNFIRE_STAND_IN_NCCL");
  return words ? strstr(words, name) : NULL;
}

long number_behind(const char *name, long otherwise) {
  const char *found = word(name);
  return found ? strtol(found + strlen(name), NULL, 10) : otherwise;
}

ncclResult_t lost(void) { return (ncclResult_t)number_behind("lost_as=", ncclRemoteError); }

// ------------------------------------------------------------------------------------ the driver

static void *driver_symbol(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  if (found) return found;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return driver ? dlsym(driver, name) : NULL;
}

int launch_host_function(cudaStream_t stream, void (*function)(void *), void *argument) {
  int (*launch)(cudaStream_t, void (*)(void *), void *) = driver_symbol("cuLaunchHostFunc");
  return launch ? launch(stream, function, argument) : -1;
}

static void *current_context(void) {
  void *context = NULL;
  int (*get)(void **) = driver_symbol("cuCtxGetCurrent");
  if (get) get(&context);
  return context;
}

void enter_context(void *context) {
  int (*set)(void *) = driver_symbol("cuCtxSetCurrent");
  if (set && context) set(context);
}

// ------------------------------------------------------------------------------------ life

void hold(struct ncclComm *comm) {
  pthread_mutex_lock(&comm->lock);
  comm->holders++;
  pthread_mutex_unlock(&comm->lock);
}

void release(struct ncclComm *comm) {
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

void set_state(struct ncclComm *comm, ncclResult_t state, const char *text) {
  pthread_mutex_lock(&comm->lock);
  if (comm->state == ncclSuccess || comm->state == ncclInProgress) {
    comm->state = state;
    if (text) snprintf(comm->last_error, sizeof comm->last_error, "%s", text);
  }
  pthread_cond_broadcast(&comm->changed);
  pthread_mutex_unlock(&comm->lock);
}

void wait_for_abort(struct ncclComm *comm) {
  struct pollfd stop = {.fd = comm->ranks.stop[0], .events = POLLIN};
  while (poll(&stop, 1, -1) <= 0) {
  }
}

int spawn(void *(*body)(void *), void *argument) {
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
    case LOST: set_state(comm, lost(), "socketProgress: remote process exited"); break;
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
