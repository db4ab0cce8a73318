// Attention on tensor cores: bf16 values, f32 scores and sums. No score leaves the registers.
//
// Each of WARPS warps has ROWS rows of the block's tile. Matrices lie in a warp as the instruction
// mma.m16n8k16 has them (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane 4 g + t holds of a sum the rows
// g and g + 8 with the columns 2 t and 2 t + 1 of every eight, so that two sums beside each other are,
// rounded, the left factor of the next product. D is the head's size, padded with zeros.
#pragma once
#include "attention.cuh"

namespace bf16 {

using Value = __nv_bfloat16;

// Tokens of a block's tile; of the tile that it meets, going forward and backward.
const int WARPS = 4, ROWS = 16, TILE = WARPS * ROWS, THREADS = WARPS * WARP, MET = 64, MET_BACKWARD = 32, BLOCKS = 2;

// Values from one row of a tile to the next: 16 bytes further, so that the eight rows of a fragment lie
// in other banks.
template <int D> constexpr int stride_of = D + 8;

// sum (16, 8) += a (16, 16) b (16, 8).
__device__ __forceinline__ void mma(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMU
  emu::mma_bf16(sum, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ unsigned pair(const Value *p) { return *reinterpret_cast<const unsigned *>(p); }
__device__ __forceinline__ unsigned pair(const Value *low, const Value *high) {
  return *reinterpret_cast<const unsigned short *>(low) | unsigned(*reinterpret_cast<const unsigned short *>(high)) << 16;
}
__device__ __forceinline__ unsigned rounded(float low, float high) {
  const Value values[] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
  return pair(values, values + 1);
}

// Where a lane's part of a fragment is.
__device__ __forceinline__ int lane_row() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ int lane_column() { return threadIdx.x % 4 * 2; }

// A left factor from 16 rows of a tile, 16 columns from `tile` on.
template <int D> __device__ __forceinline__ void left(unsigned (&a)[4], const Value *tile) {
  const Value *p = tile + lane_row() * stride_of<D> + lane_column();
  a[0] = pair(p);
  a[1] = pair(p + 8 * stride_of<D>);
  a[2] = pair(p + 8);
  a[3] = pair(p + 8 * stride_of<D> + 8);
}
// A left factor from sums: 16 of their columns.
__device__ __forceinline__ void left(unsigned (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = rounded(low[0], low[1]);
  a[1] = rounded(low[2], low[3]);
  a[2] = rounded(high[0], high[1]);
  a[3] = rounded(high[2], high[3]);
}
// A right factor whose columns are eight rows of a tile.
template <int D> __device__ __forceinline__ void right_of_rows(unsigned (&b)[2], const Value *tile) {
  const Value *p = tile + lane_row() * stride_of<D> + lane_column();
  b[0] = pair(p);
  b[1] = pair(p + 8);
}
// A right factor of 16 rows and eight columns as they are in the tile.
template <int D> __device__ __forceinline__ void right_of_columns(unsigned (&b)[2], const Value *tile) {
  const Value *p = tile + lane_column() * stride_of<D> + lane_row();
  b[0] = pair(p, p + stride_of<D>);
  b[1] = pair(p + 8 * stride_of<D>, p + 9 * stride_of<D>);
}

// `dim` columns of the tokens [first, end) of a sample into a tile of N rows, zeros around them.
template <int D, int N>
__device__ __forceinline__ void load_tile(Value *tile, const Levels &l, int first, int end, int dim, int stride,
                                          const Value *columns) {
  const bool wide = dim % 8 == 0 && stride % 8 == 0 && reinterpret_cast<size_t>(columns) % 16 == 0;
  for (int i = threadIdx.x; i < N * D / 8; i += THREADS) {
    const int token = first + i / (D / 8), column = i % (D / 8) * 8;
    const bool there = token < end && column < dim;
    const Value *from = there ? columns + size_t(token_row(l, blockIdx.z, token)) * stride + column : columns;
    Value *to = tile + i / (D / 8) * stride_of<D> + column;
    if (wide) {
      *reinterpret_cast<uint4 *>(to) = there ? *reinterpret_cast<const uint4 *>(from) : uint4{0, 0, 0, 0};
    } else {
      for (int j = 0; j < 8; ++j) to[j] = there && column + j < dim ? from[j] : __float2bfloat16_rn(0.f);
    }
  }
}

// sums (16, N) += a b': 16 rows of one tile with N of another.
template <int D, int N> __device__ __forceinline__ void add_scores(float (&sums)[N / 8][4], const Value *a, const Value *b) {
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    unsigned rows[4], columns[2];
    left<D>(rows, a + k);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      right_of_rows<D>(columns, b + n * 8 * stride_of<D> + k);
      mma(sums[n], rows, columns);
    }
  }
}

// sums (16, D) += p b: the sums p (16, N), rounded, with N rows of a tile.
template <int D, int N>
__device__ __forceinline__ void add_weighted(float (&sums)[D / 8][4], const float (&p)[N / 8][4], const Value *b) {
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    unsigned rows[4], columns[2];
    left(rows, p[k / 8], p[k / 8 + 1]);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      right_of_columns<D>(columns, b + k * stride_of<D> + n * 8);
      mma(sums[n], rows, columns);
    }
  }
}

// Writes sums (16, D) into the rows of the warp that are in the tile.
template <int D>
__device__ __forceinline__ void store_rows(Value *out, const Levels &l, const Scope &s, int dim, int stride,
                                           const float (&sums)[D / 8][4]) {
  for (int half = 0; half < 2; ++half) {
    const int token = s.first + int(threadIdx.x) / WARP * ROWS + half * 8 + lane_row();
    if (token >= s.end) continue;
    Value *row = out + size_t(token_row(l, blockIdx.z, token)) * stride;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      for (int j = 0; j < 2; ++j) {
        const int column = n * 8 + lane_column() + j;
        if (column < dim) row[column] = __float2bfloat16_rn(sums[n][half * 2 + j]);
      }
  }
}

// As f32::attention.
template <int D>
__device__ void attention(const Attention &call, const Value *qkv, Value *out, const Value *grad, float *statistics) {
  const auto &[l, mask, heads, dim, scale] = call;
  Value *q = reinterpret_cast<Value *>(shared), *k = q + TILE * stride_of<D>, *v = k + MET * stride_of<D>;
  const int head = blockIdx.y, width = heads * dim, warp = threadIdx.x / WARP;
  const Scope s = scope_of<TILE>(l, mask, false);
  load_tile<D, TILE>(q, l, s.first, s.end, dim, 3 * width, qkv + head * dim);

  float acc[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, norm[2] = {};
  for (int keys = s.from; keys < s.to; keys += MET) {
    __syncthreads();
    load_tile<D, MET>(k, l, keys, s.to, dim, 3 * width, qkv + width + head * dim);
    load_tile<D, MET>(v, l, keys, s.to, dim, 3 * width, qkv + 2 * width + head * dim);
    __syncthreads();
    float p[MET / 8][4] = {};
    add_scores<D, MET>(p, q + warp * ROWS * stride_of<D>, k);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float tile_top = -INFINITY, sum = 0.f;
#pragma unroll
      for (int n = 0; n < MET / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float &score = p[n][half * 2 + j];
          score = keys + n * 8 + lane_column() + j < s.to ? scale * score : -INFINITY;
          tile_top = fmaxf(tile_top, score);
        }
      const float new_top = fmaxf(top[half], row_max(tile_top)), shrink = __expf(top[half] - new_top);
#pragma unroll
      for (int n = 0; n < MET / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float &score = p[n][half * 2 + j];
          score = __expf(score - new_top);
          sum += score;
        }
      norm[half] = norm[half] * shrink + row_sum(sum);
      top[half] = new_top;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        acc[n][half * 2] *= shrink;
        acc[n][half * 2 + 1] *= shrink;
      }
    }
    add_weighted<D, MET>(acc, p, v);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      acc[n][half * 2] /= norm[half];
      acc[n][half * 2 + 1] /= norm[half];
    }
  if (!grad) return store_rows<D>(out + head * dim, l, s, dim, width, acc);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = s.first + warp * ROWS + half * 8 + lane_row();
    const bool there = token < s.end;
    const size_t at = there ? token_row(l, blockIdx.z, token) : 0;
    float inner = 0.f;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      for (int j = 0; j < 2; ++j) {
        const int column = n * 8 + lane_column() + j;
        if (there && column < dim) inner += acc[n][half * 2 + j] * load(grad, at * width + head * dim + column);
      }
    inner = row_sum(inner);
    if (!there || lane_column()) continue;
    statistics[(at * heads + head) * 2] = top[half] + logf(norm[half]);
    statistics[(at * heads + head) * 2 + 1] = inner;
  }
}

// As f32::attention_dq.
template <int D>
__device__ void attention_dq(const Attention &call, const Value *qkv, const Value *grad, const float *statistics,
                             Value *dqkv) {
  const auto &[l, mask, heads, dim, scale] = call;
  Value *q = reinterpret_cast<Value *>(shared), *g = q + TILE * stride_of<D>, *k = g + TILE * stride_of<D>;
  Value *v = k + MET_BACKWARD * stride_of<D>;
  const int head = blockIdx.y, width = heads * dim, warp = threadIdx.x / WARP, row = warp * ROWS * stride_of<D>;
  const Scope s = scope_of<TILE>(l, mask, false);
  load_tile<D, TILE>(q, l, s.first, s.end, dim, 3 * width, qkv + head * dim);
  load_tile<D, TILE>(g, l, s.first, s.end, dim, width, grad + head * dim);
  float lse[2] = {}, inner[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int token = s.first + warp * ROWS + half * 8 + lane_row();
    if (token >= s.end) continue;
    const float *known = statistics + (size_t(token_row(l, blockIdx.z, token)) * heads + head) * 2;
    lse[half] = known[0];
    inner[half] = known[1];
  }

  float acc[D / 8][4] = {};
  for (int keys = s.from; keys < s.to; keys += MET_BACKWARD) {
    __syncthreads();
    load_tile<D, MET_BACKWARD>(k, l, keys, s.to, dim, 3 * width, qkv + width + head * dim);
    load_tile<D, MET_BACKWARD>(v, l, keys, s.to, dim, 3 * width, qkv + 2 * width + head * dim);
    __syncthreads();
    float p[MET_BACKWARD / 8][4] = {}, dp[MET_BACKWARD / 8][4] = {};
    add_scores<D, MET_BACKWARD>(p, q + row, k);
    add_scores<D, MET_BACKWARD>(dp, g + row, v);
#pragma unroll
    for (int n = 0; n < MET_BACKWARD / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = keys + n * 8 + lane_column() + i % 2 < s.to;
        const float probability = there ? __expf(scale * p[n][i] - lse[i / 2]) : 0.f;
        p[n][i] = scale * probability * (dp[n][i] - inner[i / 2]);
      }
    add_weighted<D, MET_BACKWARD>(acc, p, k);
  }
  store_rows<D>(dqkv + head * dim, l, s, dim, 3 * width, acc);
}

// As f32::attention_dkv.
template <int D>
__device__ void attention_dkv(const Attention &call, const Value *qkv, const Value *grad, const float *statistics,
                              Value *dqkv) {
  const auto &[l, mask, heads, dim, scale] = call;
  __shared__ float known[MET_BACKWARD][2];
  Value *k = reinterpret_cast<Value *>(shared), *v = k + TILE * stride_of<D>, *q = v + TILE * stride_of<D>;
  Value *g = q + MET_BACKWARD * stride_of<D>;
  const int head = blockIdx.y, width = heads * dim, row = int(threadIdx.x) / WARP * ROWS * stride_of<D>;
  const Scope s = scope_of<TILE>(l, mask, true);
  load_tile<D, TILE>(k, l, s.first, s.end, dim, 3 * width, qkv + width + head * dim);
  load_tile<D, TILE>(v, l, s.first, s.end, dim, 3 * width, qkv + 2 * width + head * dim);

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int queries = s.from; queries < s.to; queries += MET_BACKWARD) {
    __syncthreads();
    load_tile<D, MET_BACKWARD>(q, l, queries, s.to, dim, 3 * width, qkv + head * dim);
    load_tile<D, MET_BACKWARD>(g, l, queries, s.to, dim, width, grad + head * dim);
    for (int i = threadIdx.x; i < 2 * MET_BACKWARD; i += THREADS) {
      const int query = queries + i / 2;
      known[i / 2][i % 2] =
          query < s.to ? statistics[(size_t(token_row(l, blockIdx.z, query)) * heads + head) * 2 + i % 2] : 0.f;
    }
    __syncthreads();
    float p[MET_BACKWARD / 8][4] = {}, ds[MET_BACKWARD / 8][4] = {};
    add_scores<D, MET_BACKWARD>(p, k + row, q);
    add_scores<D, MET_BACKWARD>(ds, v + row, g);
#pragma unroll
    for (int n = 0; n < MET_BACKWARD / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = n * 8 + lane_column() + i % 2;
        p[n][i] = queries + query < s.to ? __expf(scale * p[n][i] - known[query][0]) : 0.f;
        ds[n][i] = scale * p[n][i] * (ds[n][i] - known[query][1]);
      }
    add_weighted<D, MET_BACKWARD>(dv, p, g);
    add_weighted<D, MET_BACKWARD>(dk, ds, q);
  }
  store_rows<D>(dqkv + width + head * dim, l, s, dim, 3 * width, dk);
  store_rows<D>(dqkv + 2 * width + head * dim, l, s, dim, 3 * width, dv);
}

}  // namespace bf16
