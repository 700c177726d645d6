// The stand-in for cuDNN: two-dimensional convolutions of NHWC tensors with KRSC filters, in f32 and bf16,
// and their gradients. They are the plain loops of loops.h, done on the thread of the stream by cuLaunchHostFunc of the
// driver's stand-in, so that they are captured in graphs like everything else.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>

#include "calls.h"

extern "C" int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data);
extern "C" int cuStreamIsCapturing(void *stream, int *status);
extern "C" int cuCtxGetCurrent(void **context);
extern "C" int stand_in_is_device_range(uint64_t address, size_t bytes);

using namespace cudnn_stand_in;

namespace {

enum : int { NHWC = 1 };

// cudnnConvolution*AlgoPerf_t: all three are laid out alike.
struct Performance {
  int algorithm;
  int status;
  float time;
  size_t memory;
  int determinism;
  int math;
  int reserved[3];
};

thread_local char last_error[256] = "";

struct Handles {
  std::mutex lock;
  std::set<const Handle *> all;
};

Handles &handles() {
  static Handles *handles = new Handles();
  return *handles;
}

void run(void *data) {
  Call *call = static_cast<Call *>(data);
  // Whoever keeps something there loses it.
  memset(call->workspace, 0xee, call->workspace_bytes);
  switch (call->pass) {
    case Pass::Forward:
      forward(*call);
      break;
    case Pass::Data:
      backward_data(*call);
      break;
    case Pass::Filter:
      backward_filter(*call);
      break;
  }
  if (!call->captured) delete call;
}

// Winograd (4) is offered as if it had a form without tensor cores, and has none.
bool supported(int algorithm, const Convolution &at) { return algorithm != 4 || at.math != FMA_MATH; }

// Whether a pass is to have no deterministic algorithm.
bool is_lacking(Pass pass, const Tensor &x) {
  static const char *const told = getenv("SYNFIRE_STAND_IN_LACKS");
  if (told == nullptr) return false;
  const char *name = pass == Pass::Forward ? "forward" : pass == Pass::Data ? "data" : "weight";
  char here[32];
  snprintf(here, sizeof here, "%s:%d", name, x.c);
  return strcmp(here, told) == 0;
}

// The algorithms of a pass that are offered, the best first: one that is not deterministic, one that does not
// work, one of another math type, and one for everybody.
int algorithms(Pass pass, const Tensor &x, const Tensor &w, const Tensor &y, const Convolution &at, int wanted,
               int *returned, Performance *results) {
  if (const int error = check_shapes(x, w, y, at)) return error;
  const int math = at.math == FMA_MATH ? FMA_MATH : TENSOR_OP_MATH;
  const Performance offered[] = {
      {0, SUCCESS, -1, 0, 0, math, {}},
      {5, NOT_SUPPORTED, -1, 0, 1, math, {}},
      {4, SUCCESS, -1, 0, 1, at.math == FMA_MATH ? TENSOR_OP_MATH : math, {}},
      {1, SUCCESS, -1, 0, 1, math, {}},
  };
  *returned = 0;
  for (Performance offer : offered) {
    if (*returned == wanted) break;
    // The forward pass has no algorithm that is not deterministic.
    if (pass == Pass::Forward) offer.determinism = 1;
    if (is_lacking(pass, x)) offer.determinism = 0;
    // With tensor operations for everybody, 4 would be taken: it is not there for half of the shapes.
    if (offer.algorithm == 4 && x.c % 2 == 1) continue;
    offer.memory = workspace_bytes(pass, x, offer.algorithm);
    results[(*returned)++] = offer;
  }
  return SUCCESS;
}

struct Captured {
  std::mutex lock;
  std::deque<std::unique_ptr<Call>> calls;  // A graph may replay them until the end.
};

Captured &captured() {
  static Captured *captured = new Captured();
  return *captured;
}

int launch(Handle *handle, Call given, int algorithm) {
  if (handle == nullptr) return fail(NOT_INITIALIZED, "no handle");
  if (const int error = check_shapes(given.x, given.w, given.y, given.convolution)) return error;
  // FFT tiling (5) is offered with a status that says that it does not work.
  if (algorithm == 5 || !supported(algorithm, given.convolution)) return fail(NOT_SUPPORTED, "algorithm");
  const size_t wanted = workspace_bytes(given.pass, given.x, algorithm);
  if (given.workspace_bytes < wanted)
    return fail(BAD_PARAM_SIZE, "the workspace has %zu bytes and %zu are wanted", given.workspace_bytes, wanted);
  return start(handle, given, wanted);
}

}  // namespace

namespace cudnn_stand_in {

int fail(int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

bool is_handle(const Handle *handle) {
  std::lock_guard<std::mutex> held(handles().lock);
  return handles().all.count(handle) != 0;
}

// What all algorithms but the last that is offered want more.
static size_t more_workspace_bytes() {
  static const char *const mib = getenv("SYNFIRE_STAND_IN_WORKSPACE_MIB");
  static const size_t bytes = mib == nullptr ? 0 : (size_t)strtoull(mib, nullptr, 10) << 20;
  return bytes;
}

size_t workspace_bytes(Pass pass, const Tensor &x, int algorithm) {
  const size_t odd = pass == Pass::Forward ? 1000 : pass == Pass::Data ? 3000 : 2000;
  const size_t more = algorithm == 1 ? 0 : more_workspace_bytes();
  return odd + (size_t)algorithm * 100 + (size_t)x.c * 4 + more;
}

int check_shapes(const Tensor &x, const Tensor &w, const Tensor &y, const Convolution &at) {
  if (!at.set || x.type < 0 || w.type < 0 || y.type < 0) return fail(BAD_PARAM, "a descriptor is not set");
  if (x.type != w.type || x.type != y.type) return fail(NOT_SUPPORTED, "types differ");
  if (x.n != y.n || x.c != w.c || y.c != w.n) return fail(BAD_PARAM_SHAPE, "samples or channels differ");
  const int h = (x.h + 2 * at.padding_h - w.h) / at.stride_h + 1;
  const int width = (x.w + 2 * at.padding_w - w.w) / at.stride_w + 1;
  if (h != y.h || width != y.w)
    return fail(BAD_PARAM_SHAPE, "the output is %d x %d and not %d x %d", h, width, y.h, y.w);
  return SUCCESS;
}

static int check_data(const char *name, const void *data, const Tensor &tensor) {
  if (data == nullptr) return fail(BAD_PARAM_NULL, "%s is null", name);
  if ((uintptr_t)data % 16 != 0) return fail(BAD_PARAM_MISALIGNED, "%s is not aligned to 16 bytes", name);
  if (!stand_in_is_device_range((uint64_t)data, tensor.bytes()))
    return fail(BAD_PARAM, "%s, %zu bytes, is not inside one allocation", name, tensor.bytes());
  return SUCCESS;
}

int start(Handle *handle, Call given, size_t wanted) {
  if (const int error = check_data("x", given.x_data, given.x)) return error;
  if (const int error = check_data("w", given.w_data, given.w)) return error;
  if (const int error = check_data("y", given.y_data, given.y)) return error;
  if (!stand_in_is_device_range((uint64_t)given.workspace, given.workspace_bytes))
    return fail(BAD_PARAM, "the workspace is not inside one allocation");
  given.workspace_bytes = wanted;
  auto call = std::make_unique<Call>(given);
  int status = 0;
  cuStreamIsCapturing(handle->stream, &status);
  call->captured = status != 0;
  const bool keep = call->captured;
  if (cuLaunchHostFunc(handle->stream, run, call.get()) != 0)
    return fail(EXECUTION_FAILED_DRIVER, "the driver refuses");
  if (keep) {
    std::lock_guard<std::mutex> held(captured().lock);
    captured().calls.push_back(std::move(call));
  } else {
    call.release();
  }
  return SUCCESS;
}

}  // namespace cudnn_stand_in

API size_t cudnnGetVersion() { return 92100; }
API size_t cudnnGetCudartVersion() { return 13000; }

API const char *cudnnGetErrorString(int status) {
  switch (status) {
    case SUCCESS:
      return "CUDNN_STATUS_SUCCESS";
    case NOT_SUPPORTED:
      return "CUDNN_STATUS_NOT_SUPPORTED";
    default:
      return "CUDNN_STATUS_BAD_PARAM";
  }
}

API void cudnnGetLastErrorString(char *message, size_t bytes) { snprintf(message, bytes, "%s", last_error); }

API int cudnnCreate(Handle **handle) {
  void *context = nullptr;
  if (cuCtxGetCurrent(&context) != 0 || context == nullptr) return fail(NOT_INITIALIZED, "no context is current");
  *handle = new Handle();
  std::lock_guard<std::mutex> held(handles().lock);
  handles().all.insert(*handle);
  return SUCCESS;
}

API int cudnnDestroy(Handle *handle) {
  std::lock_guard<std::mutex> held(handles().lock);
  if (handles().all.erase(handle) == 0) return fail(BAD_PARAM, "no such handle");
  delete handle;
  return SUCCESS;
}

API int cudnnSetStream(Handle *handle, void *stream) {
  handle->stream = stream;
  return SUCCESS;
}

API int cudnnGetStream(Handle *handle, void **stream) {
  *stream = handle->stream;
  return SUCCESS;
}

API int cudnnCreateTensorDescriptor(Tensor **tensor) {
  *tensor = new Tensor();
  return SUCCESS;
}

API int cudnnDestroyTensorDescriptor(Tensor *tensor) {
  delete tensor;
  return SUCCESS;
}

API int cudnnSetTensor4dDescriptor(Tensor *tensor, int format, int type, int n, int c, int h, int w) {
  if (format != NHWC || (type != FLOAT && type != BFLOAT16)) return fail(NOT_SUPPORTED, "format or type");
  if (n <= 0 || c <= 0 || h <= 0 || w <= 0) return fail(BAD_PARAM, "a side is not positive");
  *tensor = {type, n, c, h, w};
  return SUCCESS;
}

API int cudnnCreateFilterDescriptor(Tensor **filter) { return cudnnCreateTensorDescriptor(filter); }
API int cudnnDestroyFilterDescriptor(Tensor *filter) { return cudnnDestroyTensorDescriptor(filter); }

API int cudnnSetFilter4dDescriptor(Tensor *filter, int type, int format, int k, int c, int h, int w) {
  return cudnnSetTensor4dDescriptor(filter, format, type, k, c, h, w);
}

API int cudnnCreateConvolutionDescriptor(Convolution **convolution) {
  *convolution = new Convolution();
  return SUCCESS;
}

API int cudnnDestroyConvolutionDescriptor(Convolution *convolution) {
  delete convolution;
  return SUCCESS;
}

API int cudnnSetConvolution2dDescriptor(Convolution *convolution, int padding_h, int padding_w, int stride_h,
                                        int stride_w, int dilation_h, int dilation_w, int mode, int type) {
  if (dilation_h != 1 || dilation_w != 1 || mode != 1 || type != FLOAT)
    return fail(NOT_SUPPORTED, "dilation, mode or type");
  if (padding_h < 0 || padding_w < 0 || stride_h <= 0 || stride_w <= 0)
    return fail(BAD_PARAM, "padding or stride");
  *convolution = {padding_h, padding_w, stride_h, stride_w, DEFAULT_MATH, true};
  return SUCCESS;
}

API int cudnnSetConvolutionMathType(Convolution *convolution, int math) {
  if (math < DEFAULT_MATH || math > FMA_MATH) return fail(BAD_PARAM, "math type %d", math);
  convolution->math = math;
  return SUCCESS;
}

API int cudnnGetConvolutionForwardAlgorithm_v7(Handle *, Tensor *x, Tensor *w, Convolution *convolution, Tensor *y,
                                               int wanted, int *returned, Performance *results) {
  return algorithms(Pass::Forward, *x, *w, *y, *convolution, wanted, returned, results);
}

API int cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle *, Tensor *w, Tensor *y, Convolution *convolution,
                                                    Tensor *x, int wanted, int *returned, Performance *results) {
  return algorithms(Pass::Data, *x, *w, *y, *convolution, wanted, returned, results);
}

API int cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle *, Tensor *x, Tensor *y, Convolution *convolution,
                                                      Tensor *w, int wanted, int *returned, Performance *results) {
  return algorithms(Pass::Filter, *x, *w, *y, *convolution, wanted, returned, results);
}

API int cudnnGetConvolutionForwardWorkspaceSize(Handle *, Tensor *x, Tensor *w, Convolution *convolution, Tensor *y,
                                                int algorithm, size_t *bytes) {
  if (const int error = check_shapes(*x, *w, *y, *convolution)) return error;
  if (!supported(algorithm, *convolution)) return fail(NOT_SUPPORTED, "algorithm %d", algorithm);
  *bytes = workspace_bytes(Pass::Forward, *x, algorithm);
  return SUCCESS;
}

API int cudnnGetConvolutionBackwardDataWorkspaceSize(Handle *, Tensor *w, Tensor *y, Convolution *convolution,
                                                     Tensor *x, int algorithm, size_t *bytes) {
  if (const int error = check_shapes(*x, *w, *y, *convolution)) return error;
  if (!supported(algorithm, *convolution)) return fail(NOT_SUPPORTED, "algorithm %d", algorithm);
  *bytes = workspace_bytes(Pass::Data, *x, algorithm);
  return SUCCESS;
}

API int cudnnGetConvolutionBackwardFilterWorkspaceSize(Handle *, Tensor *x, Tensor *y, Convolution *convolution,
                                                       Tensor *w, int algorithm, size_t *bytes) {
  if (const int error = check_shapes(*x, *w, *y, *convolution)) return error;
  if (!supported(algorithm, *convolution)) return fail(NOT_SUPPORTED, "algorithm %d", algorithm);
  *bytes = workspace_bytes(Pass::Filter, *x, algorithm);
  return SUCCESS;
}

API int cudnnConvolutionForward(Handle *handle, const float *alpha, Tensor *x, const void *x_data, Tensor *w,
                                const void *w_data, Convolution *convolution, int algorithm, void *workspace,
                                size_t bytes, const float *beta, Tensor *y, void *y_data) {
  return launch(handle,
                {Pass::Forward, *x, *w, *y, *convolution, x_data, w_data, y_data, workspace, bytes, *alpha, *beta},
                algorithm);
}

API int cudnnConvolutionBackwardData(Handle *handle, const float *alpha, Tensor *w, const void *w_data, Tensor *y,
                                     const void *y_data, Convolution *convolution, int algorithm, void *workspace,
                                     size_t bytes, const float *beta, Tensor *x, void *x_data) {
  return launch(handle,
                {Pass::Data, *x, *w, *y, *convolution, x_data, w_data, y_data, workspace, bytes, *alpha, *beta},
                algorithm);
}

API int cudnnConvolutionBackwardFilter(Handle *handle, const float *alpha, Tensor *x, const void *x_data, Tensor *y,
                                       const void *y_data, Convolution *convolution, int algorithm, void *workspace,
                                       size_t bytes, const float *beta, Tensor *w, void *w_data) {
  return launch(handle,
                {Pass::Filter, *x, *w, *y, *convolution, x_data, w_data, y_data, workspace, bytes, *alpha, *beta},
                algorithm);
}
