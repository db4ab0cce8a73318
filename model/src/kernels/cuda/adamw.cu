// AdamW and moving averages of one parameter, the twin of the trainer's update on the CPU. One thread a
// value, which reads and writes everything of it once.
#include <stddef.h>

#define AVERAGES_MAX 4

// AdamW of adamw.rs.
struct AdamW {
  float beta1, beta2, step, second, eps, keep, grad_scale;
};

struct Averages {
  int count;
  float share[AVERAGES_MAX];
};

extern "C" __global__ void adamw_f32(size_t count, AdamW rates, Averages averages, int has_grad, const float *grad,
                                     float *param, float *first, float *second, float *a0, float *a1, float *a2,
                                     float *a3) {
  const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float g = has_grad ? grad[i] * rates.grad_scale : 0.f;
  const float m = rates.beta1 * first[i] + (1.f - rates.beta1) * g;
  const float v = rates.beta2 * second[i] + (1.f - rates.beta2) * g * g;
  const float p = param[i] * rates.keep - rates.step * m / (sqrtf(v) * rates.second + rates.eps);
  first[i] = m;
  second[i] = v;
  param[i] = p;
  float *const values[AVERAGES_MAX] = {a0, a1, a2, a3};
#pragma unroll
  for (int k = 0; k < AVERAGES_MAX; ++k)
    if (k < averages.count) values[k][i] += averages.share[k] * (p - values[k][i]);
}
