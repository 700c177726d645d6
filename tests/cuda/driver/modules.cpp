// Modules and launches. An image has to be a cubin or PTX that has the kernel; what runs is the function
// of that name that g++ compiled from the same file.
#include <elf.h>

#include <cstdio>
#include <map>

#include "driver.h"

namespace stand_in {
namespace {

std::map<std::string, Kernel> &kernels() {
  static auto *kernels = new std::map<std::string, Kernel>();
  return *kernels;
}

struct Module {
  std::set<std::string> names;  // Of the kernels in the image.
};

struct Modules {
  std::mutex lock;
  std::set<Module *> modules;
};

Modules &modules() {
  static auto *modules = new Modules();
  return *modules;
}

const unsigned EM_CUDA_NUMBER = 190;

// The kernels of a cubin: its sections `.text.NAME`.
bool read_cubin(const unsigned char *image, std::set<std::string> &names) {
  Elf64_Ehdr header;
  memcpy(&header, image, sizeof header);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_machine != EM_CUDA_NUMBER || header.e_shentsize != sizeof(Elf64_Shdr))
    return false;
  const auto section = [&](unsigned index) {
    Elf64_Shdr found;
    memcpy(&found, image + header.e_shoff + index * sizeof found, sizeof found);
    return found;
  };
  const char *strings = (const char *)image + section(header.e_shstrndx).sh_offset;
  for (unsigned i = 0; i < header.e_shnum; i++) {
    const std::string name = strings + section(i).sh_name;
    if (name.rfind(".text.", 0) == 0) names.insert(name.substr(6));
  }
  return true;
}

// The kernels of PTX: `.entry NAME(`.
bool read_ptx(const std::string &text, std::set<std::string> &names) {
  if (text.find(".version") == std::string::npos || text.find(".target") == std::string::npos) return false;
  const std::string word = ".entry ";
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t start = at + word.size();
    names.insert(text.substr(start, text.find_first_of("( \n", start) - start));
  }
  return true;
}

}  // namespace

Registered::Registered(const char *name, size_t argument_bytes, Launch launch) {
  if (!kernels().emplace(name, Kernel{name, argument_bytes, launch}).second) {
    fprintf(stderr, "stand-in: two kernels are called %s\n", name);
    abort();
  }
}

const Kernel *find_kernel(const std::string &name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : &found->second;
}

}  // namespace stand_in

using namespace stand_in;

API int cuModuleLoadData(void **handle, const void *image) {
  if (const int error = usable()) return error;
  if (const int error = unsafe_call()) return error;
  if (image == nullptr) return INVALID_VALUE;
  auto module = std::make_unique<Module>();
  const auto *bytes = static_cast<const unsigned char *>(image);
  const bool elf = bytes[0] == 0x7f && memcmp(bytes, ELFMAG, SELFMAG) == 0;
  if (elf ? !read_cubin(bytes, module->names) : !read_ptx((const char *)image, module->names))
    return INVALID_IMAGE;
  std::lock_guard<std::mutex> held(modules().lock);
  *handle = module.get();
  modules().modules.insert(module.release());
  return SUCCESS;
}

API int cuModuleUnload(void *handle) {
  Device *device = current_device();
  if (device == nullptr) return INVALID_CONTEXT;
  wait_for_all_streams(device);
  std::lock_guard<std::mutex> held(modules().lock);
  Module *module = static_cast<Module *>(handle);
  if (modules().modules.erase(module) == 0) return INVALID_HANDLE;
  delete module;
  return SUCCESS;
}

API int cuModuleGetFunction(void **function, void *handle, const char *name) {
  if (const int error = usable()) return error;
  std::lock_guard<std::mutex> held(modules().lock);
  Module *module = static_cast<Module *>(handle);
  if (modules().modules.count(module) == 0) return INVALID_HANDLE;
  if (module->names.count(name) == 0) return NOT_FOUND;
  const Kernel *kernel = find_kernel(name);
  if (kernel == nullptr) {
    fprintf(stderr, "stand-in: the image has the kernel %s, this library has not: build it again\n", name);
    return NOT_FOUND;
  }
  *function = const_cast<Kernel *>(kernel);
  return SUCCESS;
}

API int cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *bytes) {
  const Kernel *kernel = static_cast<const Kernel *>(function);
  if (kernel == nullptr || index != 0) return INVALID_VALUE;
  *offset = 0;
  if (bytes != nullptr) *bytes = kernel->argument_bytes;
  return SUCCESS;
}

API int cuFuncGetAttribute(int *value, int attribute, void *function) {
  if (function == nullptr) return INVALID_HANDLE;
  // CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK; the others are those of a kernel that uses nothing.
  *value = attribute == 0 ? 1024 : 0;
  return SUCCESS;
}

API int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream,
                       void **arguments, void **extra) {
  if (const int error = usable()) return error;
  const Kernel *kernel = static_cast<const Kernel *>(function);
  if (kernel == nullptr) return INVALID_HANDLE;
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535)
    return INVALID_VALUE;
  if (block_x == 0 || block_x > 1024 || block_y != 1 || block_z != 1) return INVALID_VALUE;
  if (shared_bytes != 0 || extra != nullptr || arguments == nullptr) return INVALID_VALUE;
  const char *bytes = static_cast<const char *>(arguments[0]);
  auto copied = std::make_shared<std::vector<char>>(bytes, bytes + kernel->argument_bytes);
  const Index3 grid = {grid_x, grid_y, grid_z};
  return enqueue(stream, [=] {
    kernel->launch(copied->data(), grid, block_x);
    return (int)SUCCESS;
  });
}
