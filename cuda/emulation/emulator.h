// Runs CUDA C++ kernels on the host for tests: one fiber per CUDA thread, blocks one after another.
// One launch at a time: the driver sees to it. g++ -std=c++17 -x c++ -DCUDA_EMU
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <link.h>
#include <map>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static const
#define __shared__ thread_local            // at block scope: static. Nothing else is thread_local, so that poison_shared finds them all
// Backs `extern __shared__ T name[];`. The sanitizer, where there is one, finds nothing behind what the launch asked for.
#define EMU_DYN_SHARED(T, name) thread_local T name[(227 * 1024) / sizeof(T)]; \
    static const bool emu_of_##name = (emu::shared_memory().push_back([] { return std::pair<void *, size_t>(name, sizeof name); }), true);
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
namespace emu {
inline std::vector<std::pair<void *, size_t> (*)()> &shared_memory() { static std::vector<std::pair<void *, size_t> (*)()> arrays; return arrays; }
inline thread_local char some_shared;
// This library's thread-local storage of this thread: all shared memory.
inline std::pair<char *, size_t> all_shared() {
    some_shared = 1;  // now the thread has its storage
    std::pair<char *, size_t> found;
    auto look = [](dl_phdr_info *library, size_t, void *found) {
        char *start = (char *)library->dlpi_tls_data;
        for (int i = 0; i < library->dlpi_phnum; ++i)
            if (size_t size = library->dlpi_phdr[i].p_memsz; library->dlpi_phdr[i].p_type == PT_TLS && start <= &some_shared && &some_shared < start + size)
                return *(std::pair<char *, size_t> *)found = {start, size}, 1;
        return 0;
    };
    if (!dl_iterate_phdr(look, &found)) abort();
    return found;
}
// A block finds NaN in its shared memory; of arrays that launches size, in `bytes`.
inline void poison_shared(std::pair<char *, size_t> all, size_t bytes) {
    auto [at, size] = all;
    std::map<char *, size_t> sized;
    for (auto array : shared_memory()) sized[(char *)array().first] = array().second;
    char *fixed = at;
    for (auto [start, room] : sized) {
        memset(fixed, 0xff, start - fixed);
        fixed = start + room;
        size_t asked = std::min(bytes, room);
        ASAN_UNPOISON_MEMORY_REGION(start, room);
        memset(start, 0xff, asked);
        ASAN_POISON_MEMORY_REGION(start + asked, room - asked);
    }
    memset(fixed, 0xff, at + size - fixed);
}
enum St : uint8_t { READY, WARP, BLOCK, DONE };
struct Fiber { jmp_buf jb; ucontext_t uc; uint3 idx; St st; bool started; const char *at; };
struct Warp { uint32_t alive, arrived; uint64_t slot[32]; };
struct Ctx {
    std::vector<Fiber> f; std::vector<Warp> w; std::vector<unsigned> order; std::function<void()> body;
    char *stacks = nullptr; jmp_buf sched; unsigned cur = 0, n = 0, in_block = 0, alive = 0; uint64_t seed = 0; int vote = 0, vote_out = 0;
};
inline Ctx C;
constexpr size_t STACK = 64 << 10, MAXT = 1024;
[[noreturn]] inline void die(const char *m) { fprintf(stderr, "emulator: %s (block %u,%u,%u thread %u)\n", m, blockIdx.x, blockIdx.y, blockIdx.z, C.cur); abort(); }
__attribute__((noinline)) inline void yield() { if (!_setjmp(C.f[C.cur].jb)) _longjmp(C.sched, 1); threadIdx = C.f[C.cur].idx; }
inline void release_block() { for (unsigned i = 0; i < C.n; ++i) if (C.f[i].st == BLOCK) C.f[i].st = READY; C.in_block = 0; C.vote_out = C.vote; C.vote = 0; }
inline void release_warp(unsigned w, uint32_t m) { for (unsigned l = 0; l < 32; ++l) if (m >> l & 1) if (auto &f = C.f[w * 32 + l]; f.st == WARP) f.st = READY; C.w[w].arrived &= ~m; }
inline void fiber_main() {
    for (;;) {
        threadIdx = C.f[C.cur].idx;
        C.body();
        C.f[C.cur].st = DONE; C.w[C.cur / 32].alive &= ~(1u << C.cur % 32);
        if (--C.alive && C.in_block == C.alive) release_block();  // exited threads do not count (as on sm_70+)
        yield();
    }
}
inline void block_sync(const char *at) {
    C.f[C.cur].at = at;
    if (++C.in_block == C.alive) { release_block(); return; }
    C.f[C.cur].st = BLOCK; yield();
}
inline void warp_sync(uint32_t mask) {
    Warp &w = C.w[C.cur / 32]; unsigned lane = C.cur % 32;
    if (!(mask >> lane & 1)) die("lane calls a _sync function with a mask that leaves it out");
    w.arrived |= 1u << lane;
    if ((w.arrived & mask) == (mask & w.alive)) { C.f[C.cur].st = READY; release_warp(C.cur / 32, mask); return; }
    C.f[C.cur].st = WARP; yield();
}
template <class T> T exchange(uint32_t mask, T v, unsigned src) {
    static_assert(sizeof(T) <= 8); Warp &w = C.w[C.cur / 32];
    uint64_t b = 0; memcpy(&b, &v, sizeof v); w.slot[C.cur % 32] = b;
    warp_sync(mask); uint64_t r = w.slot[src & 31]; bool ok = mask >> (src & 31) & 1; warp_sync(mask);
    if (!ok) die("shuffle reads a lane outside its mask");
    memcpy(&v, &r, sizeof v); return v;
}
// mma.m16n8k16 of a warp: lane 4 g + t holds, of a, rows g and g + 8 with two neighbouring k from 2 t and 2 t + 8;
// of b, the same k of column g; of the sum, rows g and g + 8 with columns 2 t and 2 t + 1 (PTX ISA)
inline void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Lane { unsigned a[4], b[2]; };
    static Lane lanes[MAXT];
    unsigned lane = C.cur % 32; Lane *warp = lanes + C.cur / 32 * 32;
    memcpy(warp[lane].a, a, sizeof a); memcpy(warp[lane].b, b, sizeof b);
    warp_sync(~0u);
    auto half = [](unsigned word, unsigned high) { unsigned bits = high ? word & 0xffff0000u : word << 16; float f; memcpy(&f, &bits, 4); return f; };
    for (unsigned i = 0; i < 4; ++i) {
        unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; ++k)
            sum[i] += half(warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2) * half(warp[column * 4 + k % 8 / 2].b[k / 8], k % 2);
    }
    warp_sync(~0u);
}
// order: 0 = ascending threads, 1 = descending, else a shuffle per pass: results must not depend on it (finds missing barriers)
inline int &order() { static int o = 0; return o; }
__attribute__((noinline)) inline void resume(Fiber &f, unsigned i) {
    if (_setjmp(C.sched)) return;
    if (f.started) _longjmp(f.jb, 1);
    f.started = true; getcontext(&f.uc); f.uc.uc_stack.ss_sp = C.stacks + i * STACK; f.uc.uc_stack.ss_size = STACK; f.uc.uc_link = nullptr;
    makecontext(&f.uc, fiber_main, 0); setcontext(&f.uc);
}
inline void run_block() {
    for (C.alive = C.n; C.alive;) {
        unsigned ran = 0;
        if (order() > 1) for (unsigned i = C.n; i > 1; --i) { C.seed = C.seed * 6364136223846793005ull + 1442695040888963407ull; std::swap(C.order[i - 1], C.order[(C.seed >> 33) % i]); }
        for (unsigned k = 0; k < C.n; ++k) {
            unsigned i = order() == 1 ? C.n - 1 - k : C.order[k]; Fiber &f = C.f[i];
            if (f.st != READY) continue;
            ++ran; C.cur = i;
            resume(f, i);
        }
        if (!ran && C.alive) {
            for (unsigned i = 0; i < C.n; i += 32)   // lanes left a warp by returning while others wait in a shuffle
                if (uint32_t a = C.w[i / 32].arrived) if (a == C.w[i / 32].alive) { release_warp(i / 32, a); ++ran; }
            if (!ran) die("deadlock: divergent __syncthreads or *_sync");
        }
    }
}
inline void launch(dim3 g, dim3 b, std::function<void()> poison, std::function<void()> body) {
    unsigned n = b.x * b.y * b.z;
    if (!n || n > MAXT) die("bad block size");
    if (!C.stacks) { C.stacks = (char *)mmap(nullptr, MAXT * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); C.f.resize(MAXT); for (auto &f : C.f) f.started = false; }
    C.n = n; C.body = std::move(body); C.order.resize(n); for (unsigned i = 0; i < n; ++i) C.order[i] = i; C.seed = order();
    C.w.assign((n + 31) / 32, {}); gridDim = g; blockDim = b;
    for (unsigned z = 0; z < g.z; ++z) for (unsigned y = 0; y < g.y; ++y) for (unsigned x = 0; x < g.x; ++x) {
        blockIdx = {x, y, z}; C.in_block = 0;
        for (unsigned i = 0; i < n; ++i) { C.f[i].st = READY; C.f[i].idx = {i % b.x, i / b.x % b.y, i / b.x / b.y}; }
        for (auto &w : C.w) { w.arrived = 0; w.alive = 0; }
        for (unsigned i = 0; i < n; ++i) C.w[i / 32].alive |= 1u << i % 32;
        poison();
        run_block();
    }
}
template <class... A, size_t... I> void call(void (*k)(A...), void **a, std::index_sequence<I...>) { k(*(std::remove_reference_t<A> *)a[I]...); }
template <class... A> static void launch_ptrs(void (*k)(A...), const unsigned *g, const unsigned *b, size_t shared, void **args) {
    launch({g[0], g[1], g[2]}, {b[0], b[1], b[2]}, [=, all = all_shared()] { poison_shared(all, shared); }, [=] { call(k, args, std::index_sequence_for<A...>{}); });
}
template <class... A> std::vector<size_t> sizes(void (*)(A...)) { return {sizeof(std::remove_reference_t<A>)...}; }
}  // namespace emu
// exports `emu_<kernel>(grid[3], block[3], shared bytes, order, args)` with args as for cuLaunchKernel (pointer to each argument), and
// `emu_sizes_<kernel>()`, the bytes of each
#define EMU_EXPORT(k) extern "C" void emu_##k(const unsigned *g, const unsigned *b, size_t shared, int ord, void **args) { emu::order() = ord; emu::launch_ptrs(k, g, b, shared, args); } \
    extern "C" std::vector<size_t> emu_sizes_##k() { return emu::sizes(k); }
#define EMU_STR2(x) #x
#define EMU_STR(x) EMU_STR2(x)
#define __syncthreads() emu::block_sync(__FILE__ ":" EMU_STR(__LINE__))
inline int __syncthreads_or(int p) { emu::C.vote |= !!p; emu::block_sync("or"); int r = emu::C.vote_out; emu::block_sync("or2"); return r; }
inline void __syncwarp(unsigned m = 0xffffffffu) { emu::warp_sync(m); }
inline void __threadfence() {} inline void __threadfence_block() {}
template <class T> T __shfl_sync(unsigned m, T v, int s, int w = 32) { int l = emu::C.cur & 31; return emu::exchange(m, v, (l & ~(w - 1)) | (s & (w - 1))); }
template <class T> T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) { int l = emu::C.cur & 31, s = l ^ x; return emu::exchange(m, v, s / w == l / w ? s : l); }
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) { int l = emu::C.cur & 31, s = l + d; return emu::exchange(m, v, s / w == l / w ? s : l); }
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) { int l = emu::C.cur & 31, s = l - (int)d; return emu::exchange(m, v, s >= 0 && s / w == l / w ? s : l); }
inline unsigned __ballot_sync(unsigned m, int p) { unsigned r = 0; for (int i = 0; i < 32; ++i) if (m >> i & 1) r |= (unsigned)(emu::exchange(m, p, i) != 0) << i; return r; }
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
template <class T> T atomicAdd(T *p, T v) { T o = *p; *p = o + v; return o; }
template <class T, class U> T atomicMax(T *p, U v) { T o = *p; *p = std::max(o, (T)v); return o; }
template <class T> T __ldg(const T *p) { return *p; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); } inline float __logf(float x) { return logf(x); } inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; } inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
using std::max; using std::min;
