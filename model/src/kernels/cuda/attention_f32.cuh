// Attention in plain f32 arithmetic, the twin of attention.rs: tiles of TILE queries and TILE keys with an
// online softmax; no score leaves shared memory.
//
// Thread t of 4 TILE owns row t / 4 of the tile with every fourth column, so that a row lies in four
// neighbouring lanes. D is the head's size, padded with zeros.
#pragma once
#include "attention.cuh"

namespace f32 {

const int TILE = 32, QUARTERS = 4, THREADS = TILE * QUARTERS, BLOCKS = 4;

// `dim` columns of the tokens [first, end) of a sample into a (TILE, D + 1) tile, zeros around them.
template <int D>
__device__ __forceinline__ void load_tile(float *tile, const Levels &l, int first, int end, int dim, int stride,
                                          const float *columns) {
  for (int i = threadIdx.x; i < TILE * D; i += blockDim.x) {
    const int token = first + i / D, column = i % D;
    const bool there = token < end && column < dim;
    tile[i / D * (D + 1) + column] =
        there ? columns[size_t(token_row(l, blockIdx.z, token)) * stride + column] : 0.f;
  }
}

template <int D>
__device__ __forceinline__ float dot(const float *a, const float *b) {
  float sum = 0.f;
#pragma unroll 8
  for (int i = 0; i < D; ++i) sum += a[i] * b[i];
  return sum;
}

// Adds a multiple of a row's every fourth value.
template <int D>
__device__ __forceinline__ void add_row(float *acc, float factor, const float *row) {
#pragma unroll
  for (int i = 0; i < D / QUARTERS; ++i) acc[i] += factor * row[i * QUARTERS];
}

// Forward: out (rows, width). With `grad`, dL/dout, instead of an output the statistics that the
// backward kernels need: (rows, heads, 2) of the scores' log-sum-exp and of sum(out grad).
template <int D>
__device__ void attention(const Attention &call, const float *qkv, float *out,
                          const float *grad, float *statistics) {
  const auto &[l, mask, heads, dim, scale] = call;
  float *q = reinterpret_cast<float *>(shared), *kv = q + TILE * (D + 1), *p = kv + TILE * (D + 1);
  const int row = threadIdx.x / QUARTERS, quarter = threadIdx.x % QUARTERS, head = blockIdx.y;
  const int width = heads * dim;
  const Scope s = scope_of<TILE>(l, mask, false);
  load_tile<D>(q, l, s.first, s.end, dim, 3 * width, qkv + head * dim);

  float acc[D / QUARTERS] = {}, top = -INFINITY, norm = 0.f;
  for (int keys = s.from; keys < s.to; keys += TILE) {
    __syncthreads();
    load_tile<D>(kv, l, keys, s.to, dim, 3 * width, qkv + width + head * dim);
    __syncthreads();
    float score[TILE / QUARTERS], tile_top = -INFINITY;
    for (int i = 0; i < TILE / QUARTERS; ++i) {
      const int key = i * QUARTERS + quarter;
      score[i] = keys + key < s.to ? scale * dot<D>(q + row * (D + 1), kv + key * (D + 1)) : -INFINITY;
      tile_top = fmaxf(tile_top, score[i]);
    }
    const float new_top = fmaxf(top, row_max(tile_top)), shrink = expf(top - new_top);
    float sum = 0.f;
    for (int i = 0; i < TILE / QUARTERS; ++i) {
      const float e = expf(score[i] - new_top);
      p[row * (TILE + 1) + i * QUARTERS + quarter] = e;
      sum += e;
    }
    norm = norm * shrink + row_sum(sum);
    top = new_top;
    __syncthreads();
    load_tile<D>(kv, l, keys, s.to, dim, 3 * width, qkv + 2 * width + head * dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / QUARTERS; ++i) acc[i] *= shrink;
    for (int key = 0; key < TILE; ++key)
      add_row<D>(acc, p[row * (TILE + 1) + key], kv + key * (D + 1) + quarter);
  }

  const bool there = s.first + row < s.end;
  const size_t at = there ? token_row(l, blockIdx.z, s.first + row) : 0;
  float inner = 0.f;
#pragma unroll
  for (int i = 0; i < D / QUARTERS; ++i) {
    const int column = i * QUARTERS + quarter;
    if (!there || column >= dim) continue;
    if (grad)
      inner += acc[i] / norm * grad[at * width + head * dim + column];
    else
      out[at * width + head * dim + column] = acc[i] / norm;
  }
  if (!grad) return;
  inner = row_sum(inner);
  if (!there || quarter) return;
  statistics[(at * heads + head) * 2] = top + logf(norm);
  statistics[(at * heads + head) * 2 + 1] = inner;
}

// dL/dqueries into the first third of dqkv.
template <int D>
__device__ void attention_dq(const Attention &call, const float *qkv,
                             const float *grad, const float *statistics, float *dqkv) {
  const auto &[l, mask, heads, dim, scale] = call;
  float *q = reinterpret_cast<float *>(shared), *g = q + TILE * (D + 1), *k = g + TILE * (D + 1), *v = k + TILE * (D + 1);
  float *ds = v + TILE * (D + 1);
  const int row = threadIdx.x / QUARTERS, quarter = threadIdx.x % QUARTERS, head = blockIdx.y;
  const int width = heads * dim;
  const Scope s = scope_of<TILE>(l, mask, false);
  load_tile<D>(q, l, s.first, s.end, dim, 3 * width, qkv + head * dim);
  load_tile<D>(g, l, s.first, s.end, dim, width, grad + head * dim);
  const bool there = s.first + row < s.end;
  const size_t at = there ? token_row(l, blockIdx.z, s.first + row) : 0;
  const float lse = there ? statistics[(at * heads + head) * 2] : 0.f;
  const float inner = there ? statistics[(at * heads + head) * 2 + 1] : 0.f;

  float acc[D / QUARTERS] = {};
  for (int keys = s.from; keys < s.to; keys += TILE) {
    __syncthreads();
    load_tile<D>(k, l, keys, s.to, dim, 3 * width, qkv + width + head * dim);
    load_tile<D>(v, l, keys, s.to, dim, 3 * width, qkv + 2 * width + head * dim);
    __syncthreads();
    for (int i = 0; i < TILE / QUARTERS; ++i) {
      const int key = i * QUARTERS + quarter;
      float value = 0.f;
      if (there && keys + key < s.to) {
        const float probability = expf(scale * dot<D>(q + row * (D + 1), k + key * (D + 1)) - lse);
        value = scale * probability * (dot<D>(g + row * (D + 1), v + key * (D + 1)) - inner);
      }
      ds[row * (TILE + 1) + key] = value;
    }
    __syncthreads();
    for (int key = 0; key < TILE; ++key)
      add_row<D>(acc, ds[row * (TILE + 1) + key], k + key * (D + 1) + quarter);
  }
#pragma unroll
  for (int i = 0; i < D / QUARTERS; ++i) {
    const int column = i * QUARTERS + quarter;
    if (there && column < dim) dqkv[at * 3 * width + head * dim + column] = acc[i];
  }
}

// dL/dkeys and dL/dvalues into the other two thirds, by a block a tile of keys: no atomics.
template <int D>
__device__ void attention_dkv(const Attention &call, const float *qkv,
                              const float *grad, const float *statistics, float *dqkv) {
  const auto &[l, mask, heads, dim, scale] = call;
  float *k = reinterpret_cast<float *>(shared), *v = k + TILE * (D + 1), *q = v + TILE * (D + 1), *g = q + TILE * (D + 1);
  float *p = g + TILE * (D + 1), *ds = p + TILE * (TILE + 1);
  const int row = threadIdx.x / QUARTERS, quarter = threadIdx.x % QUARTERS, head = blockIdx.y;
  const int width = heads * dim;
  const Scope s = scope_of<TILE>(l, mask, true);
  load_tile<D>(k, l, s.first, s.end, dim, 3 * width, qkv + width + head * dim);
  load_tile<D>(v, l, s.first, s.end, dim, 3 * width, qkv + 2 * width + head * dim);

  float dk[D / QUARTERS] = {}, dv[D / QUARTERS] = {};
  for (int queries = s.from; queries < s.to; queries += TILE) {
    __syncthreads();
    load_tile<D>(q, l, queries, s.to, dim, 3 * width, qkv + head * dim);
    load_tile<D>(g, l, queries, s.to, dim, width, grad + head * dim);
    __syncthreads();
    for (int i = 0; i < TILE / QUARTERS; ++i) {
      const int query = i * QUARTERS + quarter;
      float probability = 0.f, slope = 0.f;
      if (queries + query < s.to) {
        const float *known = statistics + (size_t(token_row(l, blockIdx.z, queries + query)) * heads + head) * 2;
        probability = expf(scale * dot<D>(k + row * (D + 1), q + query * (D + 1)) - known[0]);
        slope = scale * probability * (dot<D>(v + row * (D + 1), g + query * (D + 1)) - known[1]);
      }
      p[row * (TILE + 1) + query] = probability;
      ds[row * (TILE + 1) + query] = slope;
    }
    __syncthreads();
    for (int query = 0; query < TILE; ++query) {
      add_row<D>(dk, ds[row * (TILE + 1) + query], q + query * (D + 1) + quarter);
      add_row<D>(dv, p[row * (TILE + 1) + query], g + query * (D + 1) + quarter);
    }
  }
  if (s.first + row >= s.end) return;
  dqkv += size_t(token_row(l, blockIdx.z, s.first + row)) * 3 * width + head * dim;
#pragma unroll
  for (int i = 0; i < D / QUARTERS; ++i) {
    const int column = i * QUARTERS + quarter;
    if (column >= dim) continue;
    dqkv[width + column] = dk[i];
    dqkv[2 * width + column] = dv[i];
  }
}

}  // namespace f32
