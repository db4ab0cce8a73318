// The two steps of a Laplacian pyramid, the twins of pyramid.rs. One thread a value of the result.
#include "common.cuh"

// x (planes, 2 h, 2 w) to means (planes, h, w); count of the means.
template <typename T>
__device__ void pyramid_down(size_t count, int h, int w, const T *x, T *means) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const size_t plane = i / (size_t(h) * w), y = i / w % h, first = (plane * 2 * h + 2 * y) * 2 * w + i % w * 2;
  const size_t second = first + 2 * w;
  store(means, i, ((load(x, first) + load(x, first + 1)) + (load(x, second) + load(x, second + 1))) * 0.25f);
}
#define PARAMETERS(T) (size_t count, int h, int w, const T *x, T *means)
BOTH_TYPES(pyramid_down, PARAMETERS, (count, h, w, x, means))
#undef PARAMETERS

// level (planes, h, w) plus factor times coarse (planes, h / 2, w / 2); count of the level.
template <typename T>
__device__ void pyramid_add_up(size_t count, int h, int w, float factor, const T *level, const T *coarse, T *sums) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const size_t plane = i / (size_t(h) * w), y = i / w % h, x = i % w;
  store(sums, i, load(level, i) + factor * load(coarse, (plane * (h / 2) + y / 2) * (w / 2) + x / 2));
}
#define PARAMETERS(T) (size_t count, int h, int w, float factor, const T *level, const T *coarse, T *sums)
BOTH_TYPES(pyramid_add_up, PARAMETERS, (count, h, w, factor, level, coarse, sums))
#undef PARAMETERS
