// What the kernels share: values in f32 or bf16 computed with in f32, sums over a warp, and where a
// token lies (TokenLayout of layout.rs).
#pragma once
#include <cuda_bf16.h>

#define WARP 32
#define LEVELS_MAX 8

// Tokens a sample has in each level, coarsest first; level after level, inside it sample after sample.
struct Levels {
  int batch, levels, tokens[LEVELS_MAX];
};

// What a modulation applies to: tokens (rows, width), a modulation (groups, columns).
struct Modulated {
  Levels l;
  int rows, width, groups, columns;
};

__device__ __forceinline__ float load(const float *p, size_t i) { return p[i]; }
__device__ __forceinline__ float load(const __nv_bfloat16 *p, size_t i) { return __bfloat162float(p[i]); }
__device__ __forceinline__ void store(float *p, size_t i, float value) { p[i] = value; }
__device__ __forceinline__ void store(__nv_bfloat16 *p, size_t i, float value) { p[i] = __float2bfloat16_rn(value); }

// The sum over a warp, in every lane, in one order.
__device__ __forceinline__ float warp_sum(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The row of the modulation (one a sample, or one a level and sample) for a row of tokens.
__device__ __forceinline__ int modulation_row(const Modulated &s, int row) {
  int level = 0;
  while (row >= s.l.batch * s.l.tokens[level]) row -= s.l.batch * s.l.tokens[level++];
  const int sample = row / s.l.tokens[level];
  return s.groups == s.l.batch ? sample : level * s.l.batch + sample;
}

// The row of a sample's token, counted over all levels.
__device__ __forceinline__ int token_row(const Levels &l, int sample, int token) {
  int level = 0, start = 0;
  while (token >= l.tokens[level]) {
    start += l.batch * l.tokens[level];
    token -= l.tokens[level++];
  }
  return start + sample * l.tokens[level] + token;
}

// Tokens of a sample in all levels before `level`.
__device__ __forceinline__ int tokens_before(const Levels &l, int level) {
  int tokens = 0;
  for (int i = 0; i < level; ++i) tokens += l.tokens[i];
  return tokens;
}

// A kernel for both types of values: NAME_f32 and NAME_bf16.
#define BOTH_TYPES(NAME, PARAMETERS, ARGUMENTS)                                    \
  extern "C" __global__ void NAME##_f32 PARAMETERS(float) { NAME<float> ARGUMENTS; } \
  extern "C" __global__ void NAME##_bf16 PARAMETERS(__nv_bfloat16) { NAME<__nv_bfloat16> ARGUMENTS; }
