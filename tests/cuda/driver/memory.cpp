// Memory: device memory is the host's, with a capacity, and every call checks that it stays inside one
// live allocation. Fresh and freed memory is 0xff: NaNs.
#include <cstdio>
#include <cstdlib>
#include <map>

#include "driver.h"

namespace stand_in {
namespace {

struct Allocation {
  size_t bytes;
  Device *device;
};

struct Memory {
  std::mutex lock;
  std::map<uint64_t, Allocation> device;  // By address.
  std::map<uint64_t, size_t> pinned;
  // Freed memory is kept for a while, so that what still uses it sees 0xff and not another's numbers.
  std::deque<std::pair<void *, size_t>> freed;
  size_t freed_bytes = 0;
};

const size_t FREED_BYTES_KEPT = 64 << 20;

Memory &memory() {
  static Memory *memory = new Memory();
  return *memory;
}

template <typename Map, typename Bytes>
bool contains(const Map &map, uint64_t address, size_t bytes, Bytes bytes_of) {
  auto next = map.upper_bound(address);
  if (next == map.begin()) return false;
  --next;
  const uint64_t offset = address - next->first;
  return offset <= bytes_of(next->second) && bytes <= bytes_of(next->second) - offset;
}

// Work that moves or fills bytes: checked when called and again when done, because a graph may outlive
// the memory that it was captured with.
Work copying(void *to, const void *from, size_t bytes, bool to_device, bool from_device) {
  return [=] {
    if (to_device && !is_device_range((uint64_t)to, bytes)) return (int)ILLEGAL_ADDRESS;
    if (from_device && !is_device_range((uint64_t)from, bytes)) return (int)ILLEGAL_ADDRESS;
    memmove(to, from, bytes);
    return (int)SUCCESS;
  };
}

bool is_capturing(void *stream) {
  std::lock_guard<std::mutex> held(all().lock);
  const auto found = find_stream(stream);
  return found != nullptr && found->capture != nullptr;
}

int wait_for(void *stream) {
  std::shared_ptr<Stream> found;
  {
    std::lock_guard<std::mutex> held(all().lock);
    found = find_stream(stream);
  }
  if (found == nullptr) return INVALID_HANDLE;
  found->drain();
  return usable();
}

}  // namespace

bool is_device_range(uint64_t address, size_t bytes) {
  std::lock_guard<std::mutex> held(memory().lock);
  return contains(memory().device, address, bytes, [](const Allocation &a) { return a.bytes; });
}

bool is_pinned(const void *address, size_t bytes) {
  std::lock_guard<std::mutex> held(memory().lock);
  return contains(memory().pinned, (uint64_t)address, bytes, [](size_t b) { return b; });
}

}  // namespace stand_in

using namespace stand_in;

// For the stand-ins of libraries: whether the bytes lie inside one live allocation.
API int stand_in_is_device_range(uint64_t address, size_t bytes) { return is_device_range(address, bytes); }

API int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  if (const int error = usable()) return error;
  if (const int error = unsafe_call()) return error;
  if (bytes == 0) return INVALID_VALUE;
  Device *device = current_device();
  // Devices give whole pages of 512 bytes.
  const size_t rounded = (bytes + 511) / 512 * 512;
  {
    std::lock_guard<std::mutex> held(memory().lock);
    if (rounded < bytes || rounded > device->capacity - device->used) return OUT_OF_MEMORY;
    device->used += rounded;
  }
  void *given = aligned_alloc(512, rounded);
  std::lock_guard<std::mutex> held(memory().lock);
  if (given == nullptr) {
    device->used -= rounded;
    return OUT_OF_MEMORY;
  }
  memset(given, 0xff, rounded);
  memory().device[(uint64_t)given] = {bytes, device};
  *address = (uint64_t)given;
  return SUCCESS;
}

API int cuMemFree_v2(uint64_t address) {
  if (address == 0) return SUCCESS;
  if (const int error = unsafe_call()) return error;
  std::unique_lock<std::mutex> held(memory().lock);
  auto found = memory().device.find(address);
  if (found == memory().device.end()) return INVALID_VALUE;
  Device *device = found->second.device;
  held.unlock();
  // As the driver does: what was given before may still use it.
  wait_for_all_streams(device);
  held.lock();
  found = memory().device.find(address);
  if (found == memory().device.end()) return INVALID_VALUE;
  const size_t bytes = found->second.bytes;
  const size_t rounded = (bytes + 511) / 512 * 512;
  memory().device.erase(found);
  device->used -= rounded;
  void *block = (void *)address;
  memset(block, 0xff, rounded);
  memory().freed.push_back({block, rounded});
  memory().freed_bytes += rounded;
  while (memory().freed_bytes > FREED_BYTES_KEPT) {
    memory().freed_bytes -= memory().freed.front().second;
    free(memory().freed.front().first);
    memory().freed.pop_front();
  }
  held.unlock();
  return usable();
}

API int cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(memory().lock);
  *total = current_device()->capacity;
  *free = current_device()->capacity - current_device()->used;
  return SUCCESS;
}

API int cuMemHostAlloc(void **address, size_t bytes, unsigned) {
  if (const int error = usable()) return error;
  if (const int error = unsafe_call()) return error;
  if (bytes == 0) return INVALID_VALUE;
  void *given = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (given == nullptr) return OUT_OF_MEMORY;
  memset(given, 0xff, bytes);
  std::lock_guard<std::mutex> held(memory().lock);
  memory().pinned[(uint64_t)given] = bytes;
  *address = given;
  return SUCCESS;
}

API int cuMemFreeHost(void *address) {
  if (const int error = unsafe_call()) return error;
  Device *device = current_device();
  if (device != nullptr) wait_for_all_streams(device);
  std::lock_guard<std::mutex> held(memory().lock);
  const auto found = memory().pinned.find((uint64_t)address);
  if (found == memory().pinned.end()) return INVALID_VALUE;
  memset(address, 0xff, found->second);
  memory().pinned.erase(found);
  free(address);
  return SUCCESS;
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  if (const int error = usable()) return error;
  if (!is_device_range(to, bytes)) return INVALID_VALUE;
  if (is_pinned(from, bytes) || is_capturing(stream))
    return enqueue(stream, copying((void *)to, from, bytes, true, false));
  // Pageable memory is staged before the call returns.
  auto staged = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
  return enqueue(stream, [=] {
    if (!is_device_range(to, bytes)) return (int)ILLEGAL_ADDRESS;
    memcpy((void *)to, staged->data(), bytes);
    return (int)SUCCESS;
  });
}

API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  if (const int error = usable()) return error;
  if (!is_device_range(from, bytes)) return INVALID_VALUE;
  const bool pageable = !is_pinned(to, bytes) && !is_capturing(stream);
  const int error = enqueue(stream, copying(to, (const void *)from, bytes, false, true));
  // Pageable memory is written before the call returns.
  return error != SUCCESS || !pageable ? error : wait_for(stream);
}

API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  if (const int error = usable()) return error;
  if (!is_device_range(to, bytes) || !is_device_range(from, bytes)) return INVALID_VALUE;
  return enqueue(stream, copying((void *)to, (const void *)from, bytes, true, true));
}

// Those that wait do not know of non-blocking streams.
API int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  if (const int error = unsafe_call()) return error;
  const int error = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
  return error ? error : wait_for(nullptr);
}

API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  if (const int error = unsafe_call()) return error;
  const int error = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
  return error ? error : wait_for(nullptr);
}

API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
  if (const int error = unsafe_call()) return error;
  const int error = cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
  return error ? error : wait_for(nullptr);
}

API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  if (const int error = usable()) return error;
  if (!is_device_range(to, bytes)) return INVALID_VALUE;
  return enqueue(stream, [=] {
    if (!is_device_range(to, bytes)) return (int)ILLEGAL_ADDRESS;
    memset((void *)to, value, bytes);
    return (int)SUCCESS;
  });
}

API int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *stream) {
  if (const int error = usable()) return error;
  if (to % 4 != 0 || !is_device_range(to, count * 4)) return INVALID_VALUE;
  return enqueue(stream, [=] {
    if (!is_device_range(to, count * 4)) return (int)ILLEGAL_ADDRESS;
    for (size_t i = 0; i < count; i++) ((unsigned *)to)[i] = value;
    return (int)SUCCESS;
  });
}

API int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
  if (const int error = unsafe_call()) return error;
  const int error = cuMemsetD8Async(to, value, bytes, nullptr);
  return error ? error : wait_for(nullptr);
}
