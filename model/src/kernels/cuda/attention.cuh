// What attention's kernels share: their first argument, and which tokens a tile meets.
//
// A block has a tile of TILE queries or keys of one level, blockIdx = (tile, head, sample).
#pragma once
#include "common.cuh"

enum Mask { CAUSAL, NONE, OWN };

// What all kernels take first.
struct Attention {
  Levels l;
  int mask, heads, dim;  // Mask; the heads' size before padding
  float scale;
};

// Where a block's tile lies and which tokens it meets, as positions inside a sample.
struct Scope {
  int first, end;  // the tile, within its level
  int from, to;    // what it meets
};

// Queries meet the keys of the levels that they see; keys the queries of the levels that see them.
template <int TILE> __device__ __forceinline__ Scope scope_of(const Levels &l, int mask, bool of_keys) {
  int level = 0, tile = blockIdx.x, start = 0;
  while (tile >= (l.tokens[level] + TILE - 1) / TILE) {
    tile -= (l.tokens[level] + TILE - 1) / TILE;
    start += l.tokens[level++];
  }
  const int end = start + l.tokens[level], all = tokens_before(l, l.levels), first = start + tile * TILE;
  const bool from_start = mask == NONE || (mask == CAUSAL && !of_keys);
  const bool to_end = mask == NONE || (mask == CAUSAL && of_keys);
  return {first, min(first + TILE, end), from_start ? 0 : start, to_end ? all : end};
}

// A row's greatest value or sum, where it lies in four neighbouring lanes.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
