#pragma once
#include "../emulator.h"
#include <type_traits>
template <class S> struct EmuH {  // 16-bit float kept as bits; arithmetic in float, rounded on store
    uint16_t b;
    EmuH() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> EmuH(T v) : b(S::to((float)v)) {}
    template <class U, class = std::enable_if_t<!std::is_same_v<U, S>>, class = void> explicit EmuH(EmuH<U> v) : b(S::to((float)v)) {}
    operator float() const { return S::from(b); }
    template <class T> EmuH &operator+=(T v) { return *this = EmuH((float)*this + (float)v); }
    template <class T> EmuH &operator-=(T v) { return *this = EmuH((float)*this - (float)v); }
    template <class T> EmuH &operator*=(T v) { return *this = EmuH((float)*this * (float)v); }
    template <class T> EmuH &operator/=(T v) { return *this = EmuH((float)*this / (float)v); }
    friend EmuH operator+(EmuH a, EmuH b) { return (float)a + (float)b; }
    friend EmuH operator-(EmuH a, EmuH b) { return (float)a - (float)b; }
    friend EmuH operator*(EmuH a, EmuH b) { return (float)a * (float)b; }
    friend EmuH operator/(EmuH a, EmuH b) { return (float)a / (float)b; }
    friend EmuH operator-(EmuH a) { return -(float)a; }
#define EMU_CMP(op) friend bool operator op(EmuH a, EmuH b) { return (float)a op (float)b; }
    EMU_CMP(<) EMU_CMP(<=) EMU_CMP(>) EMU_CMP(>=) EMU_CMP(==) EMU_CMP(!=)
};
struct EmuBf { static uint16_t to(float f) { uint32_t u; memcpy(&u, &f, 4); if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff; return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
               static float from(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; } };
struct EmuFp16 { static uint16_t to(float f) { _Float16 h = (_Float16)f; uint16_t b; memcpy(&b, &h, 2); return b; }
                 static float from(uint16_t b) { _Float16 h; memcpy(&h, &b, 2); return (float)h; } };
using __nv_bfloat16 = EmuH<EmuBf>; using __half = EmuH<EmuFp16>; using half = __half;
inline float __bfloat162float(__nv_bfloat16 v) { return v; } inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; } inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline float __half2float(__half v) { return v; } inline __half __float2half(float f) { return f; } inline __half __float2half_rn(float f) { return f; }
#define EMU_H(T) \
  inline T hexp(T x) { return expf(x); } inline T hlog(T x) { return logf(x); } inline T hsin(T x) { return sinf(x); } inline T hcos(T x) { return cosf(x); } \
  inline T hsqrt(T x) { return sqrtf(x); } inline T hrsqrt(T x) { return 1.f / sqrtf(x); } inline T hrcp(T x) { return 1.f / (float)x; } inline T hceil(T x) { return ceilf(x); } inline T hfloor(T x) { return floorf(x); } inline T hrint(T x) { return rintf(x); } \
  inline T __habs(T x) { return fabsf(x); } inline bool __hisnan(T x) { return std::isnan((float)x); } \
  inline T __hmax_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : (float)a > (float)b ? a : b; } inline T __hmin_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : (float)a < (float)b ? a : b; } \
  inline T __hmax(T a, T b) { return (float)a > (float)b ? a : b; } inline T __hmin(T a, T b) { return (float)a < (float)b ? a : b; } inline bool __hgt(T a, T b) { return (float)a > (float)b; } inline bool __hlt(T a, T b) { return (float)a < (float)b; } \
  inline T __hadd(T a, T b) { return a + b; } inline T __hmul(T a, T b) { return a * b; } inline T __hfma(T a, T b, T c) { return fmaf(a, b, c); }
EMU_H(__half) EMU_H(__nv_bfloat16)
#include <cassert>
using std::isnan; using std::signbit; using std::isinf;
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); } inline double normcdf(double x) { return 0.5 * erfc(-x * 0.7071067811865476); }
template <class D, class S> inline D emu_bits(S s) { static_assert(sizeof(D) == sizeof(S)); D d; memcpy(&d, &s, sizeof d); return d; }
inline __half __ushort_as_half(unsigned short v) { __half h; h.b = v; return h; } inline unsigned short __half_as_ushort(__half h) { return h.b; }
inline double __longlong_as_double(long long v) { return emu_bits<double>(v); } inline long long __double_as_longlong(double v) { return emu_bits<long long>(v); }
inline float __uint_as_float(unsigned v) { return emu_bits<float>(v); } inline float __int_as_float(int v) { return emu_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emu_bits<unsigned>(v); } inline int __float_as_int(float v) { return emu_bits<int>(v); }
template <class T, class U> T atomicMin(T *p, U v) { T o = *p; *p = std::min(o, (T)v); return o; }
template <class T, class U, class V> T atomicCAS(T *p, U c, V v) { T o = *p; if (o == (T)c) *p = (T)v; return o; }
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; } inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; } inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x - b.x, a.y - b.y}; }
