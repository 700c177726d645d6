// Streams, each a thread with a queue, and events.
#include <cstdio>

#include "driver.h"

namespace stand_in {

void Ticket::finish() {
  std::lock_guard<std::mutex> held(mutex);
  done = true;
  when = std::chrono::steady_clock::now();
  changed.notify_all();
}

void Ticket::wait() {
  std::unique_lock<std::mutex> held(mutex);
  changed.wait(held, [this] { return done; });
}

bool Ticket::is_done() {
  std::lock_guard<std::mutex> held(mutex);
  return done;
}

Stream::Stream(Device *device) : device(device), thread([this] { run(); }) {}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> held(mutex);
    stop = true;
    changed.notify_all();
  }
  thread.join();
}

void Stream::push(Work work) {
  std::lock_guard<std::mutex> held(mutex);
  queue.push_back(std::move(work));
  changed.notify_all();
}

void Stream::drain() {
  auto ticket = std::make_shared<Ticket>();
  push([ticket] {
    ticket->finish();
    return (int)SUCCESS;
  });
  ticket->wait();
}

bool Stream::is_idle() {
  std::lock_guard<std::mutex> held(mutex);
  return queue.empty() && !busy;
}

void Stream::run() {
  std::unique_lock<std::mutex> held(mutex);
  for (;;) {
    changed.wait(held, [this] { return stop || !queue.empty(); });
    if (queue.empty()) return;
    Work work = std::move(queue.front());
    queue.pop_front();
    busy = true;
    held.unlock();
    int fault = SUCCESS;
    try {
      fault = work();
    } catch (const Trap &) {
      fault = LAUNCH_FAILED;
    }
    work = nullptr;
    if (fault != SUCCESS) set_fault(device, fault);
    held.lock();
    busy = false;
  }
}

std::shared_ptr<Stream> find_stream(void *handle) {
  // 1 and 2 are CU_STREAM_LEGACY and CU_STREAM_PER_THREAD: one default stream stands for all.
  static auto *defaults = new std::vector<std::shared_ptr<Stream>>();
  if ((uintptr_t)handle <= 2) {
    Device *device = current_device();
    if (device == nullptr) return nullptr;
    for (const auto &stream : *defaults)
      if (stream->device == device) return stream;
    defaults->push_back(std::make_shared<Stream>(device));
    all().streams.insert(defaults->back());
    return defaults->back();
  }
  for (const auto &stream : all().streams)
    if (stream.get() == handle) return stream;
  return nullptr;
}

int enqueue(void *handle, Work work) {
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  if (stream == nullptr) return INVALID_HANDLE;
  if (stream->capture == nullptr) {
    Device *device = stream->device;
    // After a fault nothing runs any more.
    stream->push([device, work = std::move(work)] {
      {
        std::lock_guard<std::mutex> held(all().lock);
        if (device->fault != SUCCESS) return (int)SUCCESS;
      }
      return work();
    });
    return SUCCESS;
  }
  Capture &capture = *stream->capture;
  if (capture.invalid) return CAPTURE_INVALIDATED;
  capture.nodes.push_back({std::move(work), stream->frontier, stream->lane});
  stream->frontier = {(int)capture.nodes.size() - 1};
  return SUCCESS;
}

void wait_for_all_streams(Device *device) {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    std::lock_guard<std::mutex> held(all().lock);
    for (const auto &stream : all().streams)
      if (stream->device == device) streams.push_back(stream);
  }
  for (const auto &stream : streams) stream->drain();
}

}  // namespace stand_in

using namespace stand_in;

API int cuStreamCreateWithPriority(void **handle, unsigned flags, int) {
  if (const int error = usable()) return error;
  if (flags > 1) return INVALID_VALUE;
  auto stream = std::make_shared<Stream>(current_device());
  std::lock_guard<std::mutex> held(all().lock);
  all().streams.insert(stream);
  *handle = stream.get();
  return SUCCESS;
}

API int cuStreamCreate(void **handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

API int cuStreamDestroy_v2(void *handle) {
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard<std::mutex> held(all().lock);
    stream = find_stream(handle);
    if (stream == nullptr || (uintptr_t)handle <= 2) return INVALID_HANDLE;
    if (stream->capture != nullptr) invalidate(*stream->capture, CAPTURE_INVALIDATED);
    all().streams.erase(stream);
  }
  stream->drain();
  return SUCCESS;
}

API int cuStreamSynchronize(void *handle) {
  if (const int error = usable()) return error;
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard<std::mutex> held(all().lock);
    stream = find_stream(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    if (stream->capture != nullptr) return invalidate(*stream->capture, CAPTURE_UNSUPPORTED);
  }
  stream->drain();
  return usable();
}

API int cuStreamQuery(void *handle) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  if (stream == nullptr) return INVALID_HANDLE;
  if (stream->capture != nullptr) return invalidate(*stream->capture, CAPTURE_UNSUPPORTED);
  return stream->is_idle() ? SUCCESS : NOT_READY;
}

API int cuStreamWaitEvent(void *handle, void *given, unsigned flags) {
  if (const int error = usable()) return error;
  if (flags > 1) return INVALID_VALUE;
  std::lock_guard<std::mutex> held(all().lock);
  const auto stream = find_stream(handle);
  Event *event = static_cast<Event *>(given);
  if (stream == nullptr || all().events.count(event) == 0) return INVALID_HANDLE;
  if (event->capture != nullptr) {
    Capture &capture = *event->capture;
    if (capture.invalid) return CAPTURE_INVALIDATED;
    if (stream->capture == nullptr) {
      // The stream joins the capture.
      stream->capture = event->capture;
      stream->frontier = event->nodes;
      stream->lane = (int)capture.streams.size();
      capture.streams.push_back(stream.get());
      return SUCCESS;
    }
    if (stream->capture != event->capture) {
      invalidate(*stream->capture, CAPTURE_MERGE);
      return invalidate(capture, CAPTURE_MERGE);
    }
    for (const int node : event->nodes) stream->frontier.push_back(node);
    return SUCCESS;
  }
  if (event->ticket == nullptr) return SUCCESS;
  if (stream->capture != nullptr) return invalidate(*stream->capture, CAPTURE_ISOLATION);
  const auto ticket = event->ticket;
  stream->push([ticket] {
    ticket->wait();
    return (int)SUCCESS;
  });
  return SUCCESS;
}

API int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  if (const int error = usable()) return error;
  return enqueue(stream, [=] {
    function(data);
    return (int)SUCCESS;
  });
}

API int cuEventCreate(void **handle, unsigned flags) {
  if (const int error = usable()) return error;
  Event *event = new Event();
  event->timing = (flags & 2) == 0;  // CU_EVENT_DISABLE_TIMING
  std::lock_guard<std::mutex> held(all().lock);
  all().events.insert(event);
  *handle = event;
  return SUCCESS;
}

API int cuEventDestroy_v2(void *handle) {
  std::lock_guard<std::mutex> held(all().lock);
  Event *event = static_cast<Event *>(handle);
  if (all().events.erase(event) == 0) return INVALID_HANDLE;
  delete event;
  return SUCCESS;
}

API int cuEventRecord(void *handle, void *given) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  Event *event = static_cast<Event *>(handle);
  const auto stream = find_stream(given);
  if (stream == nullptr || all().events.count(event) == 0) return INVALID_HANDLE;
  if (stream->capture != nullptr) {
    if (stream->capture->invalid) return CAPTURE_INVALIDATED;
    event->capture = stream->capture;
    event->nodes = stream->frontier;
    return SUCCESS;
  }
  event->capture = nullptr;
  event->nodes.clear();
  event->ticket = std::make_shared<Ticket>();
  const auto ticket = event->ticket;
  stream->push([ticket] {
    ticket->finish();
    return (int)SUCCESS;
  });
  return SUCCESS;
}

namespace {

// The ticket of an event that is asked about, or why it cannot be.
int ticket_of(void *handle, std::shared_ptr<Ticket> &ticket) {
  if (const int error = usable()) return error;
  if (const int error = unsafe_call()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  Event *event = static_cast<Event *>(handle);
  if (all().events.count(event) == 0) return INVALID_HANDLE;
  if (event->capture != nullptr) return invalidate(*event->capture, CAPTURED_EVENT);
  ticket = event->ticket;
  return SUCCESS;
}

}  // namespace

API int cuEventQuery(void *handle) {
  std::shared_ptr<Ticket> ticket;
  if (const int error = ticket_of(handle, ticket)) return error;
  if (ticket != nullptr && !ticket->is_done()) return NOT_READY;
  return usable();
}

API int cuEventSynchronize(void *handle) {
  std::shared_ptr<Ticket> ticket;
  if (const int error = ticket_of(handle, ticket)) return error;
  if (ticket != nullptr) ticket->wait();
  return usable();
}

API int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(all().lock);
  Event *first = static_cast<Event *>(start);
  Event *last = static_cast<Event *>(end);
  if (all().events.count(first) == 0 || all().events.count(last) == 0) return INVALID_HANDLE;
  if (!first->timing || !last->timing || first->ticket == nullptr || last->ticket == nullptr)
    return INVALID_HANDLE;
  if (!first->ticket->is_done() || !last->ticket->is_done()) return NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(last->ticket->when - first->ticket->when).count();
  return SUCCESS;
}

API int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}
