// GELU in its tanh form, the twin of gelu.rs. One thread a value.
#include "common.cuh"

#define SQRT_2_OVER_PI 0.7978846f
#define CUBIC 0.044715f

__device__ __forceinline__ float inner_tanh(float x) { return tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)); }

template <typename T>
__device__ void gelu(size_t count, const T *x, T *y) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float value = load(x, i);
  store(y, i, 0.5f * value * (1.f + inner_tanh(value)));
}
#define PARAMETERS(T) (size_t count, const T *x, T *y)
BOTH_TYPES(gelu, PARAMETERS, (count, x, y))
#undef PARAMETERS

template <typename T>
__device__ void gelu_dx(size_t count, const T *x, const T *grad, T *dx) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float value = load(x, i), t = inner_tanh(value);
  const float slope = SQRT_2_OVER_PI * (1.f + 3.f * CUBIC * value * value);
  store(dx, i, load(grad, i) * (0.5f * (1.f + t) + 0.5f * value * (1.f - t * t) * slope));
}
#define PARAMETERS(T) (size_t count, const T *x, const T *grad, T *dx)
BOTH_TYPES(gelu_dx, PARAMETERS, (count, x, grad, dx))
#undef PARAMETERS
