// AdamW and moving averages of many parameters in one launch, the twin of the trainer's update on the CPU.
// A block has THREADS * VALUES neighbouring values of one parameter, each of which is read and written once.
#include <stddef.h>

#define AVERAGES_MAX 4
#define THREADS 256
#define VALUES 16

// AdamW of adamw.rs.
struct AdamW {
  float beta1, beta2, step, second, eps, keep, grad_scale;
};

struct Averages {
  int count;
  float share[AVERAGES_MAX];
};

// A parameter, and all that moves with it.
struct Moved {
  size_t first_block, count;
  const float *grad;  // or none, for zero
  float *param, *first, *second, *averages[AVERAGES_MAX];
};

extern "C" __global__ void adamw_f32(const Moved *all, int params, AdamW rates, Averages averages) {
  int low = 0, high = params - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (all[middle].first_block <= blockIdx.x)
      low = middle;
    else
      high = middle - 1;
  }
  const Moved &x = all[low];
  const size_t start = (blockIdx.x - x.first_block) * THREADS * VALUES;
  const size_t end = x.count < start + THREADS * VALUES ? x.count : start + THREADS * VALUES;
  for (size_t i = start + threadIdx.x; i < end; i += THREADS) {
    const float g = x.grad ? x.grad[i] * rates.grad_scale : 0.f;
    const float m = rates.beta1 * x.first[i] + (1.f - rates.beta1) * g;
    const float v = rates.beta2 * x.second[i] + (1.f - rates.beta2) * g * g;
    const float p = x.param[i] * rates.keep - rates.step * m / (sqrtf(v) * rates.second + rates.eps);
    x.first[i] = m;
    x.second[i] = v;
    x.param[i] = p;
#pragma unroll
    for (int k = 0; k < AVERAGES_MAX; ++k)
      if (k < averages.count) x.averages[k][i] += averages.share[k] * (p - x.averages[k][i]);
  }
}
