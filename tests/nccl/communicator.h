// A communicator of the stand-in, and what its two halves share.
#pragma once

#include "ranks.h"

#include <pthread.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))

enum { MOST_FACTORS = 64 };

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

// A word of SYNFIRE_STAND_IN_NCCL, and the number behind it.
const char *word(const char *name);
long number_behind(const char *name, long otherwise);
// What is reported when another rank is gone.
ncclResult_t lost(void);

int launch_host_function(cudaStream_t stream, void (*function)(void *), void *argument);
void enter_context(void *context);

void hold(struct ncclComm *comm);
void release(struct ncclComm *comm);
// The first error stays. `text` may be NULL.
void set_state(struct ncclComm *comm, ncclResult_t state, const char *text);
void wait_for_abort(struct ncclComm *comm);
// A thread that ends by itself. `argument` has to hold its communicator.
int spawn(void *(*body)(void *), void *argument);
