// What the modulation does, the twins of norm.rs and residual.rs: adaLN, LN(x) (1 + scale) + shift, and
// the gated residual, x + gate y, with their gradients.
#include "common.cuh"

#define EPS 1e-6f

// Mean and reciprocal standard deviation of a row, in two passes, by one warp.
template <typename T>
__device__ __forceinline__ void moments(const T *x, int width, float &mean, float &rstd) {
  const int lane = threadIdx.x % WARP;
  float sum = 0.f;
  for (int i = lane; i < width; i += WARP) sum += load(x, i);
  mean = warp_sum(sum) / width;
  sum = 0.f;
  for (int i = lane; i < width; i += WARP) {
    const float centred = load(x, i) - mean;
    sum += centred * centred;
  }
  rstd = rsqrtf(warp_sum(sum) / width + EPS);
}

// One warp a row. x, y: (rows, width); m: (groups, columns).
template <typename T>
__device__ void modulated_norm(const Modulated &s, int shift, int scale, const T *x, const T *m, T *y) {
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= s.rows) return;
  const int width = s.width;
  x += size_t(row) * width;
  y += size_t(row) * width;
  m += size_t(modulation_row(s, row)) * s.columns;
  float mean, rstd;
  moments(x, width, mean, rstd);
  for (int i = threadIdx.x % WARP; i < width; i += WARP)
    store(y, i, (load(x, i) - mean) * rstd * (1.f + load(m, scale * width + i)) + load(m, shift * width + i));
}
#define PARAMETERS(T) (Modulated s, int shift, int scale, const T *x, const T *m, T *y)
BOTH_TYPES(modulated_norm, PARAMETERS, (s, shift, scale, x, m, y))
#undef PARAMETERS

// dL/dx: rstd (g - mean(g) - n mean(g n)), n the normalized row, g = grad (1 + scale). One warp a row.
template <typename T>
__device__ void modulated_norm_dx(const Modulated &s, int scale, const T *x, const T *m, const T *grad, T *dx) {
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= s.rows) return;
  const int width = s.width;
  x += size_t(row) * width;
  dx += size_t(row) * width;
  grad += size_t(row) * width;
  m += size_t(modulation_row(s, row)) * s.columns + size_t(scale) * width;
  float mean, rstd, g_sum = 0.f, gn_sum = 0.f;
  moments(x, width, mean, rstd);
  for (int i = threadIdx.x % WARP; i < width; i += WARP) {
    const float g = load(grad, i) * (1.f + load(m, i));
    g_sum += g;
    gn_sum += g * (load(x, i) - mean) * rstd;
  }
  const float g_mean = warp_sum(g_sum) / width, gn_mean = warp_sum(gn_sum) / width;
  for (int i = threadIdx.x % WARP; i < width; i += WARP) {
    const float g = load(grad, i) * (1.f + load(m, i));
    store(dx, i, rstd * (g - g_mean - (load(x, i) - mean) * rstd * gn_mean));
  }
}
#define PARAMETERS(T) (Modulated s, int scale, const T *x, const T *m, const T *grad, T *dx)
BOTH_TYPES(modulated_norm_dx, PARAMETERS, (s, scale, x, m, grad, dx))
#undef PARAMETERS

// The moments of all rows, (rows, 2) in f32, for the kernel below. One warp a row.
template <typename T>
__device__ void row_moments(const Modulated &s, const T *x, float *out) {
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= s.rows) return;
  const int width = s.width;
  float mean, rstd;
  moments(x + size_t(row) * width, width, mean, rstd);
  if (threadIdx.x % WARP == 0) {
    out[2 * row] = mean;
    out[2 * row + 1] = rstd;
  }
}
#define PARAMETERS(T) (Modulated s, const T *x, float *out)
BOTH_TYPES(row_moments, PARAMETERS, (s, x, out))
#undef PARAMETERS

// Sums over the rows that a modulation row applies to, of `a(row, column)` and `b(row, column)`, by a
// block of 32 columns times 8 rows: blockIdx.x is the tile of columns, blockIdx.y the modulation row.
template <typename A, typename B>
__device__ __forceinline__ void group_sums(const Modulated &s, A a, B b, float *sums) {
  const Levels &l = s.l;
  __shared__ float parts[2][8][WARP + 1];
  const int lane = threadIdx.x % WARP, part = threadIdx.x / WARP;
  const int column = blockIdx.x * WARP + lane, group = blockIdx.y, sample = group % l.batch;
  const bool per_level = s.groups != l.batch;
  float sum_a = 0.f, sum_b = 0.f;
  for (int level = 0, start = 0; level < l.levels; start += l.batch * l.tokens[level++]) {
    if (per_level && level != group / l.batch) continue;
    for (int token = part; token < l.tokens[level] && column < s.width; token += 8) {
      const size_t row = start + sample * l.tokens[level] + token;
      sum_a += a(row, column);
      sum_b += b(row, column);
    }
  }
  parts[0][part][lane] = sum_a;
  parts[1][part][lane] = sum_b;
  __syncthreads();
  sums[0] = sums[1] = 0.f;
  for (int i = 0; i < 8; ++i) {
    sums[0] += parts[0][i][lane];
    sums[1] += parts[1][i][lane];
  }
}

// dL/dm: a group's sums of grad (shift) and grad n (scale); the rest of dm must be zero.
template <typename T>
__device__ void modulated_norm_dm(const Modulated &s, int shift, int scale, const T *x, const float *moments, const T *grad, T *dm) {
  const int width = s.width;
  float sums[2];
  group_sums(
      s, [=](size_t row, int i) { return load(grad, row * width + i); },
      [=](size_t row, int i) {
        return load(grad, row * width + i) * (load(x, row * width + i) - moments[2 * row]) * moments[2 * row + 1];
      },
      sums);
  const int column = blockIdx.x * WARP + threadIdx.x;
  if (threadIdx.x >= WARP || column >= width) return;
  dm += size_t(blockIdx.y) * s.columns + column;
  store(dm, size_t(shift) * width, sums[0]);
  store(dm, size_t(scale) * width, sums[1]);
}
#define PARAMETERS(T) (Modulated s, int shift, int scale, const T *x, const float *moments, const T *grad, T *dm)
BOTH_TYPES(modulated_norm_dm, PARAMETERS, (s, shift, scale, x, moments, grad, dm))
#undef PARAMETERS

// x + gate y, or gate y where `base` is 0. One thread a value.
template <typename T>
__device__ void gated_residual(const Modulated &s, int gate, int base, const T *x, const T *y, const T *m, T *out) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_t(s.rows) * s.width) return;
  const size_t group = modulation_row(s, i / s.width);
  const float value = load(y, i) * load(m, group * s.columns + size_t(gate) * s.width + i % s.width);
  store(out, i, base ? load(x, i) + value : value);
}
#define PARAMETERS(T) (Modulated s, int gate, int base, const T *x, const T *y, const T *m, T *out)
BOTH_TYPES(gated_residual, PARAMETERS, (s, gate, base, x, y, m, out))
#undef PARAMETERS

// dL/dgate: a group's sums of grad y; the rest of dm must be zero.
template <typename T>
__device__ void gated_residual_dm(const Modulated &s, int gate, const T *grad, const T *y, T *dm) {
  const int width = s.width;
  float sums[2];
  group_sums(
      s, [=](size_t row, int i) { return load(grad, row * width + i) * load(y, row * width + i); },
      [](size_t, int) { return 0.f; }, sums);
  const int column = blockIdx.x * WARP + threadIdx.x;
  if (threadIdx.x >= WARP || column >= width) return;
  store(dm, size_t(blockIdx.y) * s.columns + size_t(gate) * width + column, sums[0]);
}
#define PARAMETERS(T) (Modulated s, int gate, const T *grad, const T *y, T *dm)
BOTH_TYPES(gated_residual_dm, PARAMETERS, (s, gate, grad, y, dm))
#undef PARAMETERS
