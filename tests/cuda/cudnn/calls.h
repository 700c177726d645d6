// What cuDNN's two interfaces share: handles, errors, and the work itself.
#pragma once

#include <cstddef>

#include "loops.h"

#define API extern "C" __attribute__((visibility("default")))

namespace cudnn_stand_in {

// Numbers of cudnnStatus_t (cuDNN 9).
enum : int {
  SUCCESS = 0,
  NOT_INITIALIZED = 1001,
  BAD_PARAM = 2000,
  BAD_PARAM_NULL = 2002,
  BAD_PARAM_MISALIGNED = 2003,
  BAD_PARAM_NOT_FINALIZED = 2004,
  BAD_PARAM_SIZE = 2006,
  BAD_PARAM_SHAPE = 2008,
  BAD_PARAM_TYPE = 2010,
  NOT_SUPPORTED = 3000,
  EXECUTION_FAILED_DRIVER = 5001,
};

struct Handle {
  void *stream = nullptr;
};

// Keeps the words for cudnnGetLastErrorString, and gives the status back.
int fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Whether it was created and not destroyed.
bool is_handle(const Handle *handle);

int check_shapes(const Tensor &x, const Tensor &w, const Tensor &y, const Convolution &at);

// Bytes that an algorithm or an engine of this number wants.
size_t workspace_bytes(Pass pass, const Tensor &x, int number);

// Gives the work to the handle's stream, if all of its memory is the device's. The workspace is at least as long as
// what is wanted of it.
int start(Handle *handle, Call given, size_t wanted);

}  // namespace cudnn_stand_in
