// The stand-in for CUDA's driver, inside. Handles are pointers to these structures; `lock` guards all of
// them but the queues of streams. Nothing here is ever destroyed at exit: threads of streams may still run.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../host.h"

namespace stand_in {

// Numbers of CUresult (cuda.h).
enum : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_MERGE = 902,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904,
  CAPTURE_ISOLATION = 905,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
};

// Work of a stream: it returns a fault of the device, or SUCCESS.
typedef std::function<int()> Work;

// Something that ends once, and can be waited for.
struct Ticket {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::chrono::steady_clock::time_point when;

  // Who waited has let go of the mutex before it let go of the ticket. ThreadSanitizer sees that by the mutex; by
  // the count of owners alone it did not, once.
  ~Ticket() { std::lock_guard<std::mutex> held(mutex); }

  void finish();
  void wait();
  bool is_done();
};

struct Device {
  int ordinal = 0;
  size_t capacity = 0;
  size_t used = 0;   // Guarded by the lock of memory.
  int references = 0;
  int fault = SUCCESS;  // The first error of a kernel, for good. Guarded by `lock`.
};

// One node of a graph: what has to be done before it, and the lane (a captured stream) it came from.
struct Node {
  Work work;
  std::vector<int> after;
  int lane = 0;
};

enum : int { MODE_GLOBAL = 0, MODE_THREAD_LOCAL = 1, MODE_RELAXED = 2 };

struct Stream;

// A capture under way.
struct Capture {
  int mode = MODE_GLOBAL;
  std::thread::id thread;
  Stream *origin = nullptr;
  bool invalid = false;
  std::vector<Node> nodes;
  std::vector<Stream *> streams;
};

struct Event {
  bool timing = true;
  std::shared_ptr<Ticket> ticket;     // Of the newest record outside captures; none: never recorded.
  std::shared_ptr<Capture> capture;   // Of the newest record, if that was captured.
  std::vector<int> nodes;
};

struct Stream {
  explicit Stream(Device *device);
  ~Stream();
  void push(Work work);
  // Waits for everything pushed so far.
  void drain();
  bool is_idle();

  Device *device;
  std::shared_ptr<Capture> capture;  // Guarded by `lock`.
  std::vector<int> frontier;         // The nodes that the next one has to wait for.
  int lane = 0;

 private:
  void run();
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Work> queue;
  bool busy = false;
  bool stop = false;
  std::thread thread;
};

struct Graph {
  std::shared_ptr<std::vector<Node>> nodes;
  int lanes = 1;
};

struct Everything {
  std::mutex lock;
  bool initialised = false;
  std::vector<Device *> devices;
  std::set<std::shared_ptr<Stream>> streams;
  std::set<Event *> events;
  std::set<std::shared_ptr<Capture>> captures;
  std::set<Graph *> graphs;
  std::set<Graph *> executables;
};
Everything &all();

// The device whose context is current, or null.
Device *current_device();
// SUCCESS, or why no call can be made now: no context, or the device has a fault.
int usable();
// A fault found by a stream's thread.
void set_fault(Device *device, int fault);

// The stream of a handle (null: the default stream), or null if it is none. The lock is held.
std::shared_ptr<Stream> find_stream(void *handle);
// Gives work to a stream, or to the capture that it is part of.
int enqueue(void *stream, Work work);
// To be asked by calls that CUDA calls unsafe during a capture. It invalidates what it disturbs.
int unsafe_call();
// To be asked by calls that wait for everything.
int waits_for_all();
void wait_for_all_streams(Device *device);
int invalidate(Capture &capture, int error);

// Whether the bytes lie inside one live allocation of a device.
bool is_device_range(uint64_t address, size_t bytes);
bool is_pinned(const void *address, size_t bytes);

// Does a graph's work on the calling thread, and more threads if it has more lanes.
int run_graph(const std::vector<Node> &nodes, int lanes);

// Kernels that have registered themselves.
struct Kernel {
  std::string name;
  size_t argument_bytes;
  Launch launch;
};
const Kernel *find_kernel(const std::string &name);

}  // namespace stand_in

#define API extern "C" __attribute__((visibility("default")))
