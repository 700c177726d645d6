// The ranks of a communicator of the stand-in: connections over loopback between every two.
#pragma once

#include <stddef.h>

#include "abi.h"

enum { MOST_RANKS = 64 };

struct ranks {
  int world, rank;
  // By rank; this rank's own is -1.
  int sockets[MOST_RANKS];
  // Readable once the communicator is aborted, so that every wait ends.
  int stop[2];
};

// How a wait ended.
enum met { MET, STOPPED, LOST };

// An id, with a thread that brings together the ranks that have it. Whether that could be done.
int ranks_id(ncclUniqueId *id);

// Connects to all others that have the id. Needs `world`, `rank` and `stop`.
enum met ranks_meet(struct ranks *ranks, const ncclUniqueId *id);

// Sends bytes to every other rank and receives as many from each, in `theirs` by rank. Either side
// may be NULL: nothing is sent, or received.
enum met ranks_exchange(struct ranks *ranks, const void *ours, char *const theirs[], size_t bytes);

// Sends to all others (ours) or receives from one.
enum met ranks_send(struct ranks *ranks, const void *ours, size_t bytes);
enum met ranks_receive(struct ranks *ranks, int from, void *theirs, size_t bytes);

void ranks_close(struct ranks *ranks);
