// How the ranks of the stand-in find each other and talk: loopback, no encryption, for tests.
#define _GNU_SOURCE
#include "ranks.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

// What the 128 bytes of an id hold.
struct id {
  char magic[8];
  uint64_t nonce[2];
  uint16_t port;
};

// What a rank says first on a connection.
struct hello {
  uint64_t nonce[2];
  int32_t world, rank;
  uint16_t port;
};

static const char MAGIC[8] = "standin";

// How long the thread of an id waits for all its ranks.
enum { PATIENCE_S = 600 };

static int listen_on_loopback(uint16_t *port) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
      listen(listener, MOST_RANKS) != 0 ||
      getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
    if (listener >= 0) close(listener);
    return -1;
  }
  *port = ntohs(address.sin_port);
  return listener;
}

static int call(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int found = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (found >= 0 && connect(found, (struct sockaddr *)&address, sizeof address) != 0) {
    close(found);
    return -1;
  }
  return found;
}

static void prepare(int connection) {
  int one = 1;
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(connection, F_SETFL, fcntl(connection, F_GETFL) | O_NONBLOCK);
}

// Moves bytes on many connections at once: one send and one receive on each, at most.
struct transfer {
  int connection;
  const char *out;
  size_t to_send;
  char *in;
  size_t to_receive;
};

static enum met advance(struct transfer *t, short events) {
  if (t->to_send > 0 && (events & (POLLOUT | POLLERR | POLLHUP))) {
    ssize_t sent = send(t->connection, t->out, t->to_send, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return LOST;
    if (sent > 0) t->out += sent, t->to_send -= (size_t)sent;
  }
  if (t->to_receive > 0 && (events & (POLLIN | POLLERR | POLLHUP))) {
    ssize_t got = recv(t->connection, t->in, t->to_receive, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return LOST;
    if (got > 0) t->in += got, t->to_receive -= (size_t)got;
  }
  return MET;
}

static enum met run(int stop, struct transfer *transfers, int count) {
  for (;;) {
    struct pollfd polls[MOST_RANKS + 1] = {{.fd = stop, .events = POLLIN}};
    int open = 0;
    for (int i = 0; i < count; i++) {
      short events = (short)((transfers[i].to_send > 0 ? POLLOUT : 0) |
                             (transfers[i].to_receive > 0 ? POLLIN : 0));
      polls[1 + i] = (struct pollfd){.fd = events ? transfers[i].connection : -1, .events = events};
      open += events != 0;
    }
    if (open == 0) return MET;
    if (poll(polls, (nfds_t)count + 1, -1) < 0 && errno != EINTR) return LOST;
    if (polls[0].revents) return STOPPED;
    for (int i = 0; i < count; i++) {
      if (polls[1 + i].fd >= 0 && advance(&transfers[i], polls[1 + i].revents) == LOST) return LOST;
    }
  }
}

static enum met accept_one(int stop, int listener, int *connection) {
  struct pollfd polls[2] = {{.fd = stop, .events = POLLIN}, {.fd = listener, .events = POLLIN}};
  while (poll(polls, 2, -1) < 0) {
    if (errno != EINTR) return LOST;
  }
  if (polls[0].revents) return STOPPED;
  *connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (*connection < 0) return LOST;
  prepare(*connection);
  return MET;
}

// ------------------------------------------------------------------------------------ the id

struct host {
  int listener;
  uint64_t nonce[2];
};

// Collects where each rank listens, and tells all of them.
static void *host_ranks(void *argument) {
  struct host host = *(struct host *)argument;
  free(argument);
  int connections[MOST_RANKS], world = 0, known = 0;
  uint16_t ports[MOST_RANKS] = {0};
  memset(connections, -1, sizeof connections);
  while (world == 0 || known < world) {
    struct pollfd one = {.fd = host.listener, .events = POLLIN};
    if (poll(&one, 1, PATIENCE_S * 1000) <= 0) break;
    int connection = accept4(host.listener, NULL, NULL, SOCK_CLOEXEC);
    struct hello hello;
    ssize_t got = connection < 0 ? -1 : recv(connection, &hello, sizeof hello, MSG_WAITALL);
    int is_ours = got == sizeof hello && memcmp(hello.nonce, host.nonce, sizeof host.nonce) == 0 &&
                  hello.rank >= 0 && hello.rank < hello.world && hello.world <= MOST_RANKS &&
                  connections[hello.rank] < 0;
    if (!is_ours) {
      if (connection >= 0) close(connection);
      continue;
    }
    world = hello.world;
    connections[hello.rank] = connection;
    ports[hello.rank] = hello.port;
    known++;
  }
  for (int rank = 0; rank < MOST_RANKS; rank++) {
    if (connections[rank] < 0) continue;
    if (known == world) send(connections[rank], ports, sizeof ports, MSG_NOSIGNAL);
    close(connections[rank]);
  }
  close(host.listener);
  return NULL;
}

int ranks_id(ncclUniqueId *id) {
  struct id mine = {0};
  memcpy(mine.magic, MAGIC, sizeof MAGIC);
  if (getrandom(mine.nonce, sizeof mine.nonce, 0) != (ssize_t)sizeof mine.nonce) return 0;
  struct host *host = malloc(sizeof *host);
  pthread_t thread;
  *host = (struct host){.listener = listen_on_loopback(&mine.port)};
  memcpy(host->nonce, mine.nonce, sizeof mine.nonce);
  if (host->listener < 0 || pthread_create(&thread, NULL, host_ranks, host) != 0) {
    free(host);
    return 0;
  }
  pthread_detach(thread);
  memset(id, 0, sizeof *id);
  memcpy(id->internal, &mine, sizeof mine);
  return 1;
}

// ------------------------------------------------------------------------------------ meeting

// Where all ranks listen, as the one with the id says.
static enum met ask(struct ranks *ranks, const struct id *id, struct hello *hello,
                    uint16_t ports[MOST_RANKS]) {
  int host = call(id->port);
  if (host < 0) return LOST;
  prepare(host);
  struct transfer transfer = {host, (const char *)hello, sizeof *hello, (char *)ports,
                              sizeof(uint16_t) * MOST_RANKS};
  enum met met = run(ranks->stop[0], &transfer, 1);
  close(host);
  return met;
}

// Calls the ranks below and is called by those above.
static enum met connect_all(struct ranks *ranks, int listener, struct hello *hello,
                            const uint16_t ports[MOST_RANKS]) {
  for (int rank = 0; rank < ranks->rank; rank++) {
    int connection = call(ports[rank]);
    if (connection < 0) return LOST;
    ranks->sockets[rank] = connection;
    prepare(connection);
    struct transfer transfer = {connection, (const char *)hello, sizeof *hello, NULL, 0};
    enum met met = run(ranks->stop[0], &transfer, 1);
    if (met != MET) return met;
  }
  for (int missing = ranks->world - ranks->rank - 1; missing > 0; missing--) {
    int connection;
    enum met met = accept_one(ranks->stop[0], listener, &connection);
    if (met != MET) return met;
    struct hello theirs;
    struct transfer transfer = {connection, NULL, 0, (char *)&theirs, sizeof theirs};
    met = run(ranks->stop[0], &transfer, 1);
    int is_ours = met == MET && memcmp(theirs.nonce, hello->nonce, sizeof theirs.nonce) == 0 &&
                  theirs.rank > ranks->rank && theirs.rank < ranks->world &&
                  ranks->sockets[theirs.rank] < 0;
    if (!is_ours) {
      close(connection);
      return met == STOPPED ? STOPPED : LOST;
    }
    ranks->sockets[theirs.rank] = connection;
  }
  return MET;
}

enum met ranks_meet(struct ranks *ranks, const ncclUniqueId *unique) {
  struct id id;
  memcpy(&id, unique->internal, sizeof id);
  if (memcmp(id.magic, MAGIC, sizeof MAGIC) != 0) return LOST;
  struct hello hello = {.world = ranks->world, .rank = ranks->rank};
  memcpy(hello.nonce, id.nonce, sizeof id.nonce);
  int listener = listen_on_loopback(&hello.port);
  if (listener < 0) return LOST;
  uint16_t ports[MOST_RANKS];
  enum met met = ask(ranks, &id, &hello, ports);
  if (met == MET) met = connect_all(ranks, listener, &hello, ports);
  close(listener);
  return met;
}

// ------------------------------------------------------------------------------------ talking

enum met ranks_exchange(struct ranks *ranks, const void *ours, char *const theirs[], size_t bytes) {
  struct transfer transfers[MOST_RANKS];
  int count = 0;
  for (int rank = 0; rank < ranks->world; rank++) {
    if (rank == ranks->rank) continue;
    transfers[count++] = (struct transfer){ranks->sockets[rank], ours, ours ? bytes : 0,
                                           theirs ? theirs[rank] : NULL, theirs ? bytes : 0};
  }
  return run(ranks->stop[0], transfers, count);
}

enum met ranks_send(struct ranks *ranks, const void *ours, size_t bytes) {
  return ranks_exchange(ranks, ours, NULL, bytes);
}

enum met ranks_receive(struct ranks *ranks, int from, void *theirs, size_t bytes) {
  struct transfer transfer = {ranks->sockets[from], NULL, 0, theirs, bytes};
  return run(ranks->stop[0], &transfer, 1);
}

void ranks_close(struct ranks *ranks) {
  for (int rank = 0; rank < ranks->world; rank++) {
    if (ranks->sockets[rank] >= 0) close(ranks->sockets[rank]);
    ranks->sockets[rank] = -1;
  }
}
