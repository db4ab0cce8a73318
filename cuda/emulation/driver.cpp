// The CUDA driver on the host: device memory is host memory, and a launch runs the function that
// emulator.h made of the kernel. Work is done when it is asked for, but copies between the device and pinned
// memory and NCCL's exchanges on another stream than the default one as late as can be: when something waits
// for them. A recording (CUDA graph) keeps what its stream is asked for, and does it at each launch; what
// CUDA refuses to record is refused. EMU_ORDER chooses the order of threads; with EMU_NO_WAITS nothing waits for an event.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using Pointer = uint64_t;  // of the device
using Handle = void *;
using Kernel = void (*)(const unsigned *grid, const unsigned *block, size_t shared, int order, void **arguments);
using Work = std::function<void()>;
using Sizes = std::vector<size_t> (*)();  // of a kernel's arguments

enum { SUCCESS, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, INVALID_DEVICE = 101, CAPTURE_UNSUPPORTED = 900 };
static const int DEVICES = 2;
static char contexts[DEVICES];
static std::map<std::thread::id, Handle> current;  // not thread_local: emulator.h keeps that for shared memory
static std::mutex current_mutex, launch_mutex;
static std::map<Handle, Sizes> kernel_sizes;

// What a stream was asked for while it was recorded, with the memory allocated meanwhile.
struct Graph {
  std::vector<Work> work;
  std::map<Pointer, size_t> memory;
  ~Graph() { for (auto [pointer, bytes] : memory) free(reinterpret_cast<void *>(pointer)); }
};
using Shared = std::shared_ptr<Graph>;

// A stream and what it has put off. The default streams (0, 1 and 2) put nothing off.
struct Stream {
  std::mutex mutex;
  Shared recording;
  std::deque<Work> work;
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
static Graph *recording(Handle handle) { return of(handle) ? of(handle)->recording.get() : nullptr; }
static void put_off(Handle handle, Work work) {
  if (!of(handle)) return work();
  if (Graph *graph = recording(handle)) return graph->work.push_back(std::move(work));
  Stream *stream = of(handle);
  std::lock_guard<std::mutex> lock(stream->mutex);
  stream->work.push_back(std::move(work));
  ++stream->asked;
}
// What is not put off comes after what was.
static void catch_up(Handle handle) { if (Stream *stream = of(handle)) stream->run(); }
static void submit(Handle handle, Work work) {
  if (Graph *graph = recording(handle)) return graph->work.push_back(std::move(work));
  catch_up(handle);
  work();
}
static void await(Event *event) {
  if (event->stream && !getenv("EMU_NO_WAITS")) event->stream->run(event->until);
}

static void *at(Pointer pointer) { return reinterpret_cast<void *>(pointer); }

extern "C" {
// With EMU_FAIL=CODE the driver answers so to everything: too old, without its library, out of memory.
int cuInit(unsigned) { return getenv("EMU_FAIL") ? atoi(getenv("EMU_FAIL")) : SUCCESS; }
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
int cuCtxSetCurrent(Handle context) {
  std::lock_guard<std::mutex> lock(current_mutex);
  current[std::this_thread::get_id()] = context;
  return SUCCESS;
}
int cuCtxGetCurrent(Handle *context) {
  std::lock_guard<std::mutex> lock(current_mutex);
  *context = current[std::this_thread::get_id()];
  return SUCCESS;
}
int cuCtxSynchronize() {
  std::lock_guard<std::mutex> lock(streams_mutex);
  for (Stream *stream : streams) stream->run();
  return SUCCESS;
}

// For libraries that work on streams: NCCL and cuBLAS.
void emu_put_off(Handle stream, const Work &work) { put_off(stream, work); }
void emu_submit(Handle stream, const Work &work) { submit(stream, work); }

int cuStreamCreate(Handle *stream, unsigned) {
  std::lock_guard<std::mutex> lock(streams_mutex);
  streams.push_back(new Stream);
  *stream = streams.back();
  return SUCCESS;
}
int cuStreamDestroy_v2(Handle stream) { catch_up(stream); return SUCCESS; }  // events may point to it
int cuStreamSynchronize(Handle stream) {
  if (recording(stream)) return CAPTURE_UNSUPPORTED;
  catch_up(stream);
  return SUCCESS;
}
int cuStreamWaitEvent(Handle stream, Handle event, unsigned) {
  if (recording(stream)) return CAPTURE_UNSUPPORTED;
  await(static_cast<Event *>(event));
  return SUCCESS;
}
int cuStreamIsCapturing(Handle stream, int *capturing) { *capturing = recording(stream) != nullptr; return SUCCESS; }
int cuStreamBeginCapture_v2(Handle stream, int) {
  if (!of(stream) || recording(stream)) return INVALID_VALUE;
  catch_up(stream);
  of(stream)->recording = std::make_shared<Graph>();
  return SUCCESS;
}
int cuStreamEndCapture(Handle stream, Handle *graph) {
  if (!recording(stream)) return INVALID_VALUE;
  *graph = new Shared(std::move(of(stream)->recording));
  return SUCCESS;
}
int cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long) {
  *executable = new Shared(*static_cast<Shared *>(graph));
  return SUCCESS;
}
int cuGraphLaunch(Handle executable, Handle stream) {
  submit(stream, [graph = *static_cast<Shared *>(executable)] { for (auto &work : graph->work) work(); });
  return SUCCESS;
}
int cuGraphDestroy(Handle graph) { delete static_cast<Shared *>(graph); return SUCCESS; }
int cuGraphExecDestroy(Handle executable) { delete static_cast<Shared *>(executable); return SUCCESS; }
int cuEventCreate(Handle *event, unsigned) { *event = new Event{nullptr, 0}; return SUCCESS; }
int cuEventDestroy_v2(Handle event) { delete static_cast<Event *>(event); return SUCCESS; }
int cuEventRecord(Handle event, Handle handle) {
  if (recording(handle)) return CAPTURE_UNSUPPORTED;
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
// What a recording allocates and frees holds NaN before and after, at each launch. With EMU_NO_GRAPHS nothing
// can be recorded.
int cuMemAllocAsync(Pointer *pointer, size_t bytes, Handle stream) {
  if (recording(stream) && getenv("EMU_NO_GRAPHS")) return CAPTURE_UNSUPPORTED;
  const int result = cuMemAlloc_v2(pointer, bytes);
  if (Graph *graph = result == SUCCESS ? recording(stream) : nullptr) {
    graph->memory[*pointer] = bytes;
    graph->work.push_back([=, p = *pointer] { memset(at(p), 0xff, bytes); });
  }
  return result;
}
int cuMemFree_v2(Pointer pointer) { free(at(pointer)); return SUCCESS; }
int cuMemFreeAsync(Pointer pointer, Handle stream) {
  if (Graph *graph = recording(stream)) {
    auto memory = graph->memory.find(pointer);
    if (memory == graph->memory.end()) return INVALID_VALUE;
    graph->work.push_back([=, bytes = memory->second] { memset(at(pointer), 0xff, bytes); });
    return SUCCESS;
  }
  put_off(stream, [=] { free(at(pointer)); });
  return SUCCESS;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = memset(malloc(bytes), 0xff, bytes);
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
  if (recording(stream)) return CAPTURE_UNSUPPORTED;
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
  if (recording(stream)) return CAPTURE_UNSUPPORTED;
  if (is_pinned(to)) {
    put_off(stream, [=] { memcpy(to, at(from), n); });
    return SUCCESS;
  }
  catch_up(stream);
  return cuMemcpyDtoH_v2(to, from, n);
}
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, Handle stream) {
  submit(stream, [=] { memmove(at(to), at(from), n); });
  return SUCCESS;
}
int cuMemsetD8_v2(Pointer to, unsigned char value, size_t n) { memset(at(to), value, n); return SUCCESS; }
int cuMemsetD8Async(Pointer to, unsigned char value, size_t n, Handle stream) {
  submit(stream, [=] { cuMemsetD8_v2(to, value, n); });
  return SUCCESS;
}

int cuModuleLoadData(Handle *module, const void *) { *module = malloc(1); return SUCCESS; }
int cuModuleUnload(Handle module) { free(module); return SUCCESS; }
static void *here(const std::string &name) {
  Dl_info self;
  dladdr(reinterpret_cast<void *>(cuInit), &self);
  return dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), name.c_str());
}
int cuModuleGetFunction(Handle *function, Handle, const char *name) {
  *function = here(std::string("emu_") + name);
  if (!*function) fprintf(stderr, "emulation: kernel %s is missing\n", name);
  std::lock_guard<std::mutex> lock(launch_mutex);
  kernel_sizes[*function] = reinterpret_cast<Sizes>(here(std::string("emu_sizes_") + name));
  return *function ? SUCCESS : NOT_FOUND;
}
int cuFuncSetAttribute(Handle, int, int) { return SUCCESS; }
int cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Handle stream, void **arguments, void **) {
  const char *order = getenv("EMU_ORDER");
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || shared > 232448) return INVALID_VALUE;
  std::vector<std::vector<std::max_align_t>> copies;
  Sizes sizes;
  {
    std::lock_guard<std::mutex> lock(launch_mutex);
    sizes = kernel_sizes[function];
  }
  for (size_t size : sizes()) {
    copies.emplace_back((size + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    memcpy(copies.back().data(), arguments[copies.size() - 1], size);
  }
  submit(stream, [=, copies = std::move(copies), order = order ? atoi(order) : 0] {
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    std::vector<void *> arguments;
    for (auto &copy : copies) arguments.push_back(const_cast<std::max_align_t *>(copy.data()));
    std::lock_guard<std::mutex> lock(launch_mutex);
    reinterpret_cast<Kernel>(function)(grid, block, shared, order, arguments.data());
  });
  return SUCCESS;
}
}
