// Compiles where NVIDIA's own nccl.h says what layout.h says: tests/nccl/build --header FOLDER.
#include <stddef.h>

#include <nccl.h>

#include "layout.h"

SAME(NCCL_UNIQUE_ID_BYTES == 128);
SAME(NCCL_CONFIG_UNDEF_INT == INT_MIN);
// The layout of the configuration that library.rs fills is that of this version.
SAME(NCCL_VERSION(2, 28, 9) == 22809);

static const ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;

int main(void) {
  return !(initial.size == 80 && initial.magic == 0xcafebeef && initial.blocking == INT_MIN &&
           initial.netName == NULL && initial.nvlinkCentricSched == INT_MIN);
}
