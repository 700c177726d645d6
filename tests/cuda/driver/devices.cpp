// Devices, contexts, versions and the names of errors.
#include <cstdio>
#include <cstdlib>

#include "driver.h"

namespace stand_in {

Everything &all() {
  static Everything *everything = new Everything();
  return *everything;
}

namespace {

thread_local Device *current = nullptr;

long from_environment(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text == nullptr || *text == 0 ? otherwise : strtol(text, nullptr, 10);
}

Device *find_device(int ordinal) {
  std::lock_guard<std::mutex> held(all().lock);
  const auto &devices = all().devices;
  return ordinal < 0 || (size_t)ordinal >= devices.size() ? nullptr : devices[ordinal];
}

}  // namespace

Device *current_device() { return current; }

int usable() {
  std::lock_guard<std::mutex> held(all().lock);
  if (current == nullptr) return all().initialised ? INVALID_CONTEXT : NOT_INITIALIZED;
  return current->fault;
}

void set_fault(Device *device, int fault) {
  std::lock_guard<std::mutex> held(all().lock);
  if (device->fault == SUCCESS) device->fault = fault;
}

}  // namespace stand_in

using namespace stand_in;

API int cuInit(unsigned flags) {
  if (flags != 0) return INVALID_VALUE;
  std::lock_guard<std::mutex> held(all().lock);
  if (all().initialised) return SUCCESS;
  const long count = from_environment("SYNFIRE_STAND_IN_DEVICES", 1);
  if (count <= 0) return 100;  // CUDA_ERROR_NO_DEVICE
  for (int i = 0; i < count; i++) {
    Device *device = new Device();
    device->ordinal = i;
    device->capacity = (size_t)from_environment("SYNFIRE_STAND_IN_MEMORY_MIB", 2048) << 20;
    all().devices.push_back(device);
  }
  all().initialised = true;
  return SUCCESS;
}

API int cuDriverGetVersion(int *version) {
  *version = (int)from_environment("SYNFIRE_STAND_IN_DRIVER_VERSION", 13000);
  return SUCCESS;
}

API int cuDeviceGetCount(int *count) {
  std::lock_guard<std::mutex> held(all().lock);
  if (!all().initialised) return NOT_INITIALIZED;
  *count = (int)all().devices.size();
  return SUCCESS;
}

API int cuDeviceGet(int *device, int ordinal) {
  if (find_device(ordinal) == nullptr) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

API int cuDeviceGetName(char *name, int bytes, int device) {
  if (find_device(device) == nullptr) return INVALID_DEVICE;
  snprintf(name, (size_t)bytes, "stand-in for a GPU");
  return SUCCESS;
}

API int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  const Device *found = find_device(device);
  if (found == nullptr) return INVALID_DEVICE;
  *bytes = found->capacity;
  return SUCCESS;
}

API int cuDeviceGetUuid_v2(char *uuid, int device) {
  if (find_device(device) == nullptr) return INVALID_DEVICE;
  memset(uuid, 0, 16);
  uuid[15] = (char)(from_environment("SYNFIRE_STAND_IN_FIRST", 0) + device);
  return SUCCESS;
}

API int cuDeviceGetPCIBusId(char *name, int bytes, int device) {
  if (find_device(device) == nullptr) return INVALID_DEVICE;
  snprintf(name, (size_t)bytes, "0000:%02x:00.0", device);
  return SUCCESS;
}

API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (find_device(device) == nullptr) return INVALID_DEVICE;
  switch (attribute) {
    case 1:  // MAX_THREADS_PER_BLOCK
    case 2:  // MAX_BLOCK_DIM_X
      *value = 1024;
      return SUCCESS;
    case 5:  // MAX_GRID_DIM_X
      *value = 0x7fffffff;
      return SUCCESS;
    case 6:  // MAX_GRID_DIM_Y
    case 7:  // MAX_GRID_DIM_Z
      *value = 65535;
      return SUCCESS;
    case 8:  // MAX_SHARED_MEMORY_PER_BLOCK
      *value = 48 << 10;
      return SUCCESS;
    case 10:  // WARP_SIZE
      *value = 32;
      return SUCCESS;
    case 16:  // MULTIPROCESSOR_COUNT
      *value = 4;
      return SUCCESS;
    case 18:  // INTEGRATED
      *value = 0;
      return SUCCESS;
    case 38:  // L2_CACHE_SIZE
      *value = 50 << 20;
      return SUCCESS;
    case 39:  // MAX_THREADS_PER_MULTIPROCESSOR
      *value = 2048;
      return SUCCESS;
    case 75:  // COMPUTE_CAPABILITY_MAJOR
      *value = 9;
      return SUCCESS;
    case 76:  // COMPUTE_CAPABILITY_MINOR
      *value = 0;
      return SUCCESS;
    default:
      fprintf(stderr, "stand-in: attribute %d of a device is not known\n", attribute);
      return INVALID_VALUE;
  }
}

// A context is the device itself.
API int cuDevicePrimaryCtxRetain(void **context, int device) {
  Device *found = find_device(device);
  if (found == nullptr) return INVALID_DEVICE;
  std::lock_guard<std::mutex> held(all().lock);
  found->references++;
  *context = found;
  return SUCCESS;
}

API int cuDevicePrimaryCtxRelease_v2(int device) {
  Device *found = find_device(device);
  if (found == nullptr) return INVALID_DEVICE;
  std::lock_guard<std::mutex> held(all().lock);
  if (found->references == 0) return INVALID_CONTEXT;
  found->references--;
  return SUCCESS;
}

API int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned) {
  return find_device(device) == nullptr ? INVALID_DEVICE : SUCCESS;
}

API int cuCtxSetCurrent(void *context) {
  current = static_cast<Device *>(context);
  return SUCCESS;
}

API int cuCtxGetCurrent(void **context) {
  *context = current;
  return SUCCESS;
}

API int cuCtxGetDevice(int *device) {
  if (current == nullptr) return INVALID_CONTEXT;
  *device = current->ordinal;
  return SUCCESS;
}

API int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  if (const int error = usable()) return error;
  *least = 0;
  *greatest = -5;
  return SUCCESS;
}

API int cuCtxSynchronize() {
  if (const int error = usable()) return error;
  if (const int error = waits_for_all()) return error;
  wait_for_all_streams(current_device());
  return usable();
}

namespace {

struct ErrorName {
  int number;
  const char *name;
  const char *text;
};

const ErrorName ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const ErrorName *find_error(int number) {
  for (const ErrorName &error : ERRORS)
    if (error.number == number) return &error;
  return nullptr;
}

}  // namespace

API int cuGetErrorName(int number, const char **name) {
  const ErrorName *error = find_error(number);
  *name = error == nullptr ? nullptr : error->name;
  return error == nullptr ? INVALID_VALUE : SUCCESS;
}

API int cuGetErrorString(int number, const char **text) {
  const ErrorName *error = find_error(number);
  *text = error == nullptr ? nullptr : error->text;
  return error == nullptr ? INVALID_VALUE : SUCCESS;
}

// NVRTC asks the driver for a table of functions that are not public, and does not ask whether it got one.
// This one says that it has none.
API int cuGetExportTable(const void **table, const void *) {
  static const uint64_t empty[8] = {sizeof(uint64_t)};
  *table = empty;
  return SUCCESS;
}
