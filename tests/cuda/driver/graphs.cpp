// Capture of streams, and graphs: what was captured is a list of nodes that know what they wait for. A
// replay keeps to that alone: streams that were not ordered while captured run at once.
#include <algorithm>
#include <cstdio>

#include "driver.h"

namespace stand_in {
namespace {

thread_local int thread_mode = MODE_GLOBAL;

// Whether the nodes of `frontier` are all among those that `last` waits for, or themselves.
bool is_joined(const Capture &capture, const std::vector<int> &last, const std::vector<int> &frontier) {
  std::vector<char> seen(capture.nodes.size(), 0);
  std::vector<int> open = last;
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    if (seen[node]) continue;
    seen[node] = 1;
    for (const int before : capture.nodes[node].after) open.push_back(before);
  }
  return std::all_of(frontier.begin(), frontier.end(), [&](int node) { return seen[node] != 0; });
}

// Streams and events forget the capture. The lock is held.
void leave(const std::shared_ptr<Capture> &capture) {
  for (const auto &stream : all().streams)
    if (stream->capture == capture) {
      stream->capture = nullptr;
      stream->frontier.clear();
    }
  for (Event *event : all().events)
    if (event->capture == capture) {
      event->capture = nullptr;
      event->nodes.clear();
    }
  all().captures.erase(capture);
}

}  // namespace

int invalidate(Capture &capture, int error) {
  capture.invalid = true;
  return error;
}

int unsafe_call() {
  if (thread_mode == MODE_RELAXED) return SUCCESS;
  std::lock_guard<std::mutex> held(all().lock);
  int result = SUCCESS;
  for (const auto &capture : all().captures) {
    const bool mine = capture->thread == std::this_thread::get_id();
    if ((capture->mode == MODE_GLOBAL && (mine || thread_mode == MODE_GLOBAL)) ||
        (capture->mode == MODE_THREAD_LOCAL && mine))
      result = invalidate(*capture, CAPTURE_UNSUPPORTED);
  }
  return result;
}

int waits_for_all() {
  std::lock_guard<std::mutex> held(all().lock);
  int result = SUCCESS;
  for (const auto &capture : all().captures) result = invalidate(*capture, CAPTURE_UNSUPPORTED);
  return result;
}

int run_graph(const std::vector<Node> &nodes, int lanes) {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<char> done(nodes.size(), 0);
  int result = SUCCESS;
  const auto run_lane = [&](int lane) {
    for (size_t i = 0; i < nodes.size(); i++) {
      if (nodes[i].lane != lane) continue;
      bool skip = false;
      {
        std::unique_lock<std::mutex> held(mutex);
        for (const int before : nodes[i].after) changed.wait(held, [&] { return done[before] != 0; });
        skip = result != SUCCESS;
      }
      int fault = SUCCESS;
      if (!skip) {
        try {
          fault = nodes[i].work();
        } catch (const Trap &) {
          fault = LAUNCH_FAILED;
        }
      }
      std::lock_guard<std::mutex> held(mutex);
      if (result == SUCCESS) result = fault;
      done[i] = 1;
      changed.notify_all();
    }
  };
  std::vector<std::thread> threads;
  for (int lane = 1; lane < lanes; lane++) threads.emplace_back(run_lane, lane);
  run_lane(0);
  for (std::thread &thread : threads) thread.join();
  return result;
}

}  // namespace stand_in

using namespace stand_in;

API int cuThreadExchangeStreamCaptureMode(int *mode) {
  if (*mode < MODE_GLOBAL || *mode > MODE_RELAXED) return INVALID_VALUE;
  std::swap(*mode, thread_mode);
  return SUCCESS;
}

API int cuStreamBeginCapture_v2(void *handle, int mode) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  if (stream == nullptr) return INVALID_HANDLE;
  if ((uintptr_t)handle <= 2) return CAPTURE_UNSUPPORTED;
  if (mode < MODE_GLOBAL || mode > MODE_RELAXED) return INVALID_VALUE;
  if (stream->capture != nullptr) return invalidate(*stream->capture, CAPTURE_UNSUPPORTED);
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream.get();
  capture->streams.push_back(stream.get());
  all().captures.insert(capture);
  stream->capture = capture;
  stream->frontier.clear();
  stream->lane = 0;
  return SUCCESS;
}

API int cuStreamEndCapture(void *handle, void **given) {
  *given = nullptr;
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  if (stream == nullptr) return INVALID_HANDLE;
  const auto capture = stream->capture;
  if (capture == nullptr) return INVALID_VALUE;
  if (capture->origin != stream.get()) return CAPTURE_UNMATCHED;
  if (capture->mode != MODE_RELAXED && capture->thread != std::this_thread::get_id())
    return CAPTURE_WRONG_THREAD;
  bool joined = true;
  for (const Stream *other : capture->streams) {
    const bool live = std::any_of(all().streams.begin(), all().streams.end(),
                                  [&](const auto &s) { return s.get() == other; });
    joined = joined && (!live || is_joined(*capture, stream->frontier, other->frontier));
  }
  leave(capture);
  if (capture->invalid) return CAPTURE_INVALIDATED;
  if (!joined) return CAPTURE_UNJOINED;
  Graph *graph = new Graph();
  graph->nodes = std::make_shared<std::vector<Node>>(std::move(capture->nodes));
  graph->lanes = (int)capture->streams.size();
  all().graphs.insert(graph);
  *given = graph;
  return SUCCESS;
}

API int cuStreamIsCapturing(void *handle, int *status) {
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  if (stream == nullptr) return INVALID_HANDLE;
  *status = stream->capture == nullptr ? 0 : stream->capture->invalid ? 2 : 1;
  return SUCCESS;
}

API int cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
  std::lock_guard<std::mutex> held(all().lock);
  Graph *graph = static_cast<Graph *>(handle);
  if (all().graphs.count(graph) == 0) return INVALID_VALUE;
  if (nodes != nullptr) return INVALID_VALUE;  // Only how many there are.
  *count = graph->nodes->size();
  return SUCCESS;
}

API int cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  Graph *graph = static_cast<Graph *>(handle);
  if (all().graphs.count(graph) == 0) return INVALID_VALUE;
  Graph *made = new Graph(*graph);
  all().executables.insert(made);
  *executable = made;
  return SUCCESS;
}

API int cuGraphUpload(void *handle, void *) {
  std::lock_guard<std::mutex> held(all().lock);
  return all().executables.count(static_cast<Graph *>(handle)) == 0 ? INVALID_VALUE : SUCCESS;
}

API int cuGraphLaunch(void *handle, void *given) {
  if (const int error = usable()) return error;
  std::shared_ptr<std::vector<Node>> nodes;
  int lanes = 1;
  {
    std::lock_guard<std::mutex> held(all().lock);
    Graph *graph = static_cast<Graph *>(handle);
    if (all().executables.count(graph) == 0) return INVALID_VALUE;
    const auto stream = find_stream(given);
    if (stream == nullptr) return INVALID_HANDLE;
    // A graph within a graph is more than is wanted here.
    if (stream->capture != nullptr) return invalidate(*stream->capture, CAPTURE_UNSUPPORTED);
    nodes = graph->nodes;
    lanes = graph->lanes;
  }
  return enqueue(given, [=] { return run_graph(*nodes, lanes); });
}

API int cuGraphExecDestroy(void *handle) {
  std::lock_guard<std::mutex> held(all().lock);
  Graph *graph = static_cast<Graph *>(handle);
  if (all().executables.erase(graph) == 0) return INVALID_VALUE;
  delete graph;
  return SUCCESS;
}

API int cuGraphDestroy(void *handle) {
  std::lock_guard<std::mutex> held(all().lock);
  Graph *graph = static_cast<Graph *>(handle);
  if (all().graphs.erase(graph) == 0) return INVALID_VALUE;
  delete graph;
  return SUCCESS;
}
