// The CUDA driver on the host: device memory is host memory, and a launch runs the function that
// emulator.h made of the kernel. Work is done when it is asked for, but copies to the device and NCCL's
// exchanges on another stream than the default one as late as can be: when something waits for them.
// EMU_ORDER chooses the order of threads; with EMU_NO_WAITS streams do not wait for each other.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

using Pointer = uint64_t;  // of the device
using Handle = void *;
using Kernel = void (*)(const unsigned *grid, const unsigned *block, size_t shared, int order, void **arguments);

enum { SUCCESS, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, INVALID_DEVICE = 101 };
static const int DEVICES = 2;
static char contexts[DEVICES];
static thread_local Handle current;

// A stream and what it has put off. The default streams (0, 1 and 2) put nothing off.
struct Stream {
  std::mutex mutex;
  std::deque<std::function<void()>> work;
  size_t asked = 0, done = 0;

  void run(size_t until) {
    std::lock_guard<std::mutex> lock(mutex);
    for (; done < until && !work.empty(); ++done) {
      work.front()();
      work.pop_front();
    }
  }
  void run() { run(SIZE_MAX); }
};
struct Event { Stream *stream; size_t until; };
static std::mutex streams_mutex;
static std::vector<Stream *> streams;
static std::map<const void *, size_t> pinned;  // host memory

static bool is_pinned(const void *pointer) {
  std::lock_guard<std::mutex> lock(streams_mutex);
  auto next = pinned.upper_bound(pointer);
  if (next == pinned.begin()) return false;
  auto [start, bytes] = *--next;
  return pointer < static_cast<const char *>(start) + bytes;
}

static Stream *of(Handle handle) {
  return reinterpret_cast<uintptr_t>(handle) > 2 ? static_cast<Stream *>(handle) : nullptr;
}
static void put_off(Handle handle, std::function<void()> work) {
  if (!of(handle)) return work();
  Stream *stream = of(handle);
  std::lock_guard<std::mutex> lock(stream->mutex);
  stream->work.push_back(std::move(work));
  ++stream->asked;
}
// What is not put off comes after what was.
static void catch_up(Handle handle) { if (Stream *stream = of(handle)) stream->run(); }
static void await(Event *event) { if (event->stream) event->stream->run(event->until); }

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
int cuCtxSynchronize() {
  std::lock_guard<std::mutex> lock(streams_mutex);
  for (Stream *stream : streams) stream->run();
  return SUCCESS;
}

// For libraries that work on streams: NCCL.
void emu_put_off(Handle stream, const std::function<void()> &work) { put_off(stream, work); }

int cuStreamCreate(Handle *stream, unsigned) {
  std::lock_guard<std::mutex> lock(streams_mutex);
  streams.push_back(new Stream);
  *stream = streams.back();
  return SUCCESS;
}
int cuStreamDestroy_v2(Handle stream) { catch_up(stream); return SUCCESS; }  // events may point to it
int cuStreamSynchronize(Handle stream) { catch_up(stream); return SUCCESS; }
int cuStreamWaitEvent(Handle, Handle event, unsigned) {
  if (!getenv("EMU_NO_WAITS")) await(static_cast<Event *>(event));
  return SUCCESS;
}
int cuStreamIsCapturing(Handle, int *capturing) { *capturing = 0; return SUCCESS; }
int cuEventCreate(Handle *event, unsigned) { *event = new Event{nullptr, 0}; return SUCCESS; }
int cuEventDestroy_v2(Handle event) { delete static_cast<Event *>(event); return SUCCESS; }
int cuEventRecord(Handle event, Handle handle) {
  Stream *stream = of(handle);
  size_t asked = 0;
  if (stream) {
    std::lock_guard<std::mutex> lock(stream->mutex);
    asked = stream->asked;
  }
  *static_cast<Event *>(event) = {stream, asked};
  return SUCCESS;
}
int cuEventQuery(Handle event) { await(static_cast<Event *>(event)); return SUCCESS; }
int cuEventSynchronize(Handle event) { await(static_cast<Event *>(event)); return SUCCESS; }

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
int cuMemFreeAsync(Pointer pointer, Handle stream) {
  put_off(stream, [=] { free(at(pointer)); });
  return SUCCESS;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = malloc(bytes);
  std::lock_guard<std::mutex> lock(streams_mutex);
  pinned[*memory] = bytes;
  return SUCCESS;
}
int cuMemFreeHost(void *memory) {
  std::lock_guard<std::mutex> lock(streams_mutex);
  pinned.erase(memory);
  free(memory);
  return SUCCESS;
}
int cuMemcpyHtoD_v2(Pointer to, const void *from, size_t n) { memcpy(at(to), from, n); return SUCCESS; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t n, Handle stream) {
  if (is_pinned(from)) {
    put_off(stream, [=] { memcpy(at(to), from, n); });
  } else {  // the driver has taken its copy when the call returns
    const char *bytes = static_cast<const char *>(from);
    put_off(stream, [=, staged = std::vector<char>(bytes, bytes + n)] { memcpy(at(to), staged.data(), n); });
  }
  return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, Pointer from, size_t n) { memcpy(to, at(from), n); return SUCCESS; }
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t n, Handle stream) {
  catch_up(stream);
  return cuMemcpyDtoH_v2(to, from, n);
}
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, Handle stream) {
  catch_up(stream);
  memmove(at(to), at(from), n);
  return SUCCESS;
}
int cuMemsetD8_v2(Pointer to, unsigned char value, size_t n) { memset(at(to), value, n); return SUCCESS; }
int cuMemsetD8Async(Pointer to, unsigned char value, size_t n, Handle stream) {
  catch_up(stream);
  return cuMemsetD8_v2(to, value, n);
}

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
                   unsigned shared, Handle stream, void **arguments, void **) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  const char *order = getenv("EMU_ORDER");
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || shared > 232448) return INVALID_VALUE;
  catch_up(stream);
  reinterpret_cast<Kernel>(function)(grid, block, shared, order ? atoi(order) : 0, arguments);
  return SUCCESS;
}
}
