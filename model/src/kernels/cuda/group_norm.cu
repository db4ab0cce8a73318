// Group normalisation of channels-last images with the SiLU that may follow it, forward and backward: the twin
// of group_norm.rs. Statistics in a launch of their own, by a block for each group of each image.
#include "common.cuh"

#define THREADS 256
#define LANES 32  // channels side by side in a block of the weights' gradients

struct Groups {
  int images, pixels, channels, groups, silu;
  float eps;
};

// The sum over a block, in every thread, in one order.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float sums[THREADS / WARP];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
  __syncthreads();
  value = 0.f;
  for (int i = 0; i < THREADS / WARP; ++i) value += sums[i];
  return value;
}

// The i-th value of the block's group and image, blockIdx = (group, image), and its channel.
__device__ __forceinline__ size_t place(const Groups &s, int i, int &channel) {
  const int size = s.channels / s.groups;
  channel = blockIdx.x * size + i % size;
  return (size_t(blockIdx.y) * s.pixels + i / size) * s.channels + channel;
}

// dL/dh of the affine map's result, where `grad` is dL/dy.
__device__ __forceinline__ float through(const Groups &s, float h, float grad) {
  if (!s.silu) return grad;
  const float sigmoid = 1.f / (1.f + expf(-h));
  return grad * sigmoid * (1.f + h * (1.f - sigmoid));
}

// (images, groups, 2): mean and 1 / sqrt(variance + eps).
extern "C" __global__ void __launch_bounds__(THREADS, 4) group_norm_moments(Groups s, const float *x, float *moments) {
  const int count = s.pixels * (s.channels / s.groups);
  int channel;
  float sum = 0.f, squares = 0.f;
  for (int i = threadIdx.x; i < count; i += THREADS) sum += x[place(s, i, channel)];
  const float mean = block_sum(sum) / count;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const float d = x[place(s, i, channel)] - mean;
    squares += d * d;
  }
  squares = block_sum(squares);
  if (threadIdx.x) return;
  float *out = moments + (size_t(blockIdx.y) * s.groups + blockIdx.x) * 2;
  out[0] = mean;
  out[1] = rsqrtf(squares / count + s.eps);
}

// The moments of the group that a value of all images belongs to, and its channel.
__device__ __forceinline__ size_t group_of(const Groups &s, size_t i, int &channel) {
  channel = i % s.channels;
  return (i / (size_t(s.pixels) * s.channels) * s.groups + channel / (s.channels / s.groups)) * 2;
}

extern "C" __global__ void group_norm(Groups s, const float *x, const float *weight, const float *bias,
                                      const float *moments, float *y) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_t(s.images) * s.pixels * s.channels) return;
  int channel;
  const float *of = moments + group_of(s, i, channel);
  const float h = (x[i] - of[0]) * of[1] * weight[channel] + bias[channel];
  y[i] = s.silu ? h / (1.f + expf(-h)) : h;
}

// (images, groups, 2): means over a group of dL/dh w and of dL/dh w xhat.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    group_norm_means(Groups s, const float *x, const float *weight, const float *bias, const float *grad,
                     const float *moments, float *means) {
  const int count = s.pixels * (s.channels / s.groups);
  const size_t group = (size_t(blockIdx.y) * s.groups + blockIdx.x) * 2;
  const float mean = moments[group], rstd = moments[group + 1];
  float plain = 0.f, weighted = 0.f;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    int channel;
    const size_t at = place(s, i, channel);
    const float xhat = (x[at] - mean) * rstd, w = weight[channel];
    const float d = through(s, xhat * w + bias[channel], grad[at]) * w;
    plain += d;
    weighted += d * xhat;
  }
  plain = block_sum(plain);
  weighted = block_sum(weighted);
  if (threadIdx.x) return;
  means[group] = plain / count;
  means[group + 1] = weighted / count;
}

extern "C" __global__ void group_norm_dx(Groups s, const float *x, const float *weight, const float *bias,
                                         const float *grad, const float *moments, const float *means, float *dx) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_t(s.images) * s.pixels * s.channels) return;
  int channel;
  const size_t group = group_of(s, i, channel);
  const float rstd = moments[group + 1], xhat = (x[i] - moments[group]) * rstd, w = weight[channel];
  const float d = through(s, xhat * w + bias[channel], grad[i]) * w;
  dx[i] = rstd * (d - means[group] - xhat * means[group + 1]);
}

// (parts, 2, channels): dL/dweight and dL/dbias over every parts-th row of pixels; blockIdx = (channels, part).
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    group_norm_dweight(Groups s, const float *x, const float *weight, const float *bias, const float *grad,
                       const float *moments, float *sums) {
  __shared__ float partial[2][THREADS];
  const int lane = threadIdx.x % LANES, channel = blockIdx.x * LANES + lane;
  const size_t rows = size_t(s.images) * s.pixels;
  float dweight = 0.f, dbias = 0.f;
  if (channel < s.channels) {
    for (size_t row = size_t(blockIdx.y) * (THREADS / LANES) + threadIdx.x / LANES; row < rows;
         row += size_t(gridDim.y) * (THREADS / LANES)) {
      const size_t i = row * s.channels + channel;
      int same;
      const float *of = moments + group_of(s, i, same);
      const float xhat = (x[i] - of[0]) * of[1];
      const float d = through(s, xhat * weight[channel] + bias[channel], grad[i]);
      dweight += d * xhat;
      dbias += d;
    }
  }
  partial[0][threadIdx.x] = dweight;
  partial[1][threadIdx.x] = dbias;
  __syncthreads();
  if (threadIdx.x >= LANES || channel >= s.channels) return;
  for (int which = 0; which < 2; ++which) {
    float sum = 0.f;
    for (int i = lane; i < THREADS; i += LANES) sum += partial[which][i];
    sums[(size_t(blockIdx.y) * 2 + which) * s.channels + channel] = sum;
  }
}
