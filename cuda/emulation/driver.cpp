// The CUDA driver on the host: device memory is host memory, work is done when it is asked for, and a
// launch runs the function that emulator.h made of the kernel. EMU_ORDER chooses the order of threads.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

using Pointer = uint64_t;  // of the device
using Handle = void *;
using Kernel = void (*)(const unsigned *grid, const unsigned *block, size_t shared, int order, void **arguments);

enum { SUCCESS, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, INVALID_DEVICE = 101 };
static const int DEVICES = 2;
static char contexts[DEVICES];
static thread_local Handle current;

static void *at(Pointer pointer) { return reinterpret_cast<void *>(pointer); }

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuGetErrorName(int, const char **name) { *name = "EMULATION"; return SUCCESS; }
int cuGetErrorString(int, const char **text) { *text = "refused by the emulated driver"; return SUCCESS; }

int cuDeviceGetCount(int *count) { *count = DEVICES; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return ordinal < DEVICES ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetAttribute(int *value, int, int) { *value = 1; return SUCCESS; }
int cuDeviceGetName(char *name, int bytes, int) { snprintf(name, bytes, "emulated GPU"); return SUCCESS; }
int cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = &contexts[device]; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(Handle context) { current = context; return SUCCESS; }
int cuCtxGetCurrent(Handle *context) { *context = current; return SUCCESS; }
int cuCtxSynchronize() { return SUCCESS; }

int cuStreamCreate(Handle *stream, unsigned) { *stream = malloc(1); return SUCCESS; }
int cuStreamDestroy_v2(Handle stream) { free(stream); return SUCCESS; }
int cuStreamSynchronize(Handle) { return SUCCESS; }
int cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
int cuStreamIsCapturing(Handle, int *capturing) { *capturing = 0; return SUCCESS; }
int cuEventCreate(Handle *event, unsigned) { *event = malloc(1); return SUCCESS; }
int cuEventDestroy_v2(Handle event) { free(event); return SUCCESS; }
int cuEventRecord(Handle, Handle) { return SUCCESS; }
int cuEventQuery(Handle) { return SUCCESS; }
int cuEventSynchronize(Handle) { return SUCCESS; }

// Filled with NaN: what a kernel reads before it was written shows. Not a byte more than was asked for: a
// sanitizer sees what lies outside.
int cuMemAlloc_v2(Pointer *pointer, size_t bytes) {
  void *memory;
  if (posix_memalign(&memory, 256, bytes)) return OUT_OF_MEMORY;
  *pointer = reinterpret_cast<Pointer>(memset(memory, 0xff, bytes));
  return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = *total = size_t(1) << 30; return SUCCESS; }
int cuMemAllocAsync(Pointer *pointer, size_t bytes, Handle) { return cuMemAlloc_v2(pointer, bytes); }
int cuMemFree_v2(Pointer pointer) { free(at(pointer)); return SUCCESS; }
int cuMemFreeAsync(Pointer pointer, Handle) { free(at(pointer)); return SUCCESS; }
int cuMemcpyHtoD_v2(Pointer to, const void *from, size_t n) { memcpy(at(to), from, n); return SUCCESS; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t n, Handle) { return cuMemcpyHtoD_v2(to, from, n); }
int cuMemcpyDtoH_v2(void *to, Pointer from, size_t n) { memcpy(to, at(from), n); return SUCCESS; }
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t n, Handle) { return cuMemcpyDtoH_v2(to, from, n); }
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, Handle) { memmove(at(to), at(from), n); return SUCCESS; }
int cuMemsetD8_v2(Pointer to, unsigned char value, size_t n) { memset(at(to), value, n); return SUCCESS; }
int cuMemsetD8Async(Pointer to, unsigned char value, size_t n, Handle) { return cuMemsetD8_v2(to, value, n); }

int cuModuleLoadData(Handle *module, const void *) { *module = malloc(1); return SUCCESS; }
int cuModuleUnload(Handle module) { free(module); return SUCCESS; }
int cuModuleGetFunction(Handle *function, Handle, const char *name) {
  Dl_info self;
  dladdr(reinterpret_cast<void *>(cuModuleGetFunction), &self);
  *function = dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), ("emu_" + std::string(name)).c_str());
  if (!*function) fprintf(stderr, "emulation: kernel %s is missing\n", name);
  return *function ? SUCCESS : NOT_FOUND;
}
int cuFuncSetAttribute(Handle, int, int) { return SUCCESS; }
int cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Handle, void **arguments, void **) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  const char *order = getenv("EMU_ORDER");
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || shared > 232448) return INVALID_VALUE;
  reinterpret_cast<Kernel>(function)(grid, block, shared, order ? atoi(order) : 0, arguments);
  return SUCCESS;
}
}
