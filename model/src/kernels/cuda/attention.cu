// Attention over levels: f32 in plain arithmetic, bf16 on tensor cores.
#include "attention.cuh"

extern __shared__ uint4 shared[];

#include "attention_bf16.cuh"
#include "attention_f32.cuh"

#define ENTRY(NAME, D, TYPE) extern "C" __global__ void __launch_bounds__(TYPE::THREADS, TYPE::BLOCKS) NAME##_##D##_##TYPE
#define ENTRIES(D, T, TYPE)                                                                                     \
  ENTRY(attention, D, TYPE)(Attention call, const T *qkv, T *out) {                                             \
    TYPE::attention<D>(call, qkv, out, nullptr, nullptr);                                                       \
  }                                                                                                             \
  ENTRY(attention_statistics, D, TYPE)(Attention call, const T *qkv, const T *grad, float *statistics) {        \
    TYPE::attention<D>(call, qkv, nullptr, grad, statistics);                                                   \
  }                                                                                                             \
  ENTRY(attention_dq, D, TYPE)(Attention call, const T *qkv, const T *grad, const float *statistics, T *dqkv) { \
    TYPE::attention_dq<D>(call, qkv, grad, statistics, dqkv);                                                   \
  }                                                                                                             \
  ENTRY(attention_dkv, D, TYPE)(Attention call, const T *qkv, const T *grad, const float *statistics, T *dqkv) {\
    TYPE::attention_dkv<D>(call, qkv, grad, statistics, dqkv);                                                  \
  }
#define BOTH_ENTRIES(D)  \
  ENTRIES(D, float, f32) \
  ENTRIES(D, __nv_bfloat16, bf16)
BOTH_ENTRIES(32)
BOTH_ENTRIES(64)
BOTH_ENTRIES(80)
BOTH_ENTRIES(128)
