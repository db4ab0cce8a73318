// cuBLAS on the host: products by plain loops, sums in double, on the stream that the handle was given.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <functional>

enum { F32 = 0, F16 = 2, BF16 = 14 };  // cudaDataType
enum { SUCCESS = 0, INVALID_VALUE = 7 };

static float load(const void *p, size_t i, int type) {
  if (type == F32) return static_cast<const float *>(p)[i];
  if (type == F16) return float(static_cast<const _Float16 *>(p)[i]);
  const uint32_t bits = uint32_t(static_cast<const uint16_t *>(p)[i]) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void store(void *p, size_t i, int type, float value) {
  if (type == F32) { static_cast<float *>(p)[i] = value; return; }
  if (type == F16) { static_cast<_Float16 *>(p)[i] = _Float16(value); return; }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  static_cast<uint16_t *>(p)[i] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static bool known(int type) { return type == F32 || type == F16 || type == BF16; }

static void submit(void *stream, const std::function<void()> &work) {
  static auto driver = reinterpret_cast<void (*)(void *, const std::function<void()> &)>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "emu_submit"));
  driver(stream, work);
}

extern "C" {
struct Handle { void *stream; };
int cublasCreate_v2(Handle **handle) { *handle = new Handle{nullptr}; return SUCCESS; }
int cublasDestroy_v2(Handle *handle) { delete handle; return SUCCESS; }
int cublasSetStream_v2(Handle *handle, void *stream) { handle->stream = stream; return SUCCESS; }
const char *cublasGetStatusName(int) { return "EMULATION"; }
const char *cublasGetStatusString(int) { return "refused by the emulated cuBLAS"; }

// Column-major C = alpha op(A) op(B); beta must be zero, as Candle has it.
int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int atype, int lda, long long astride, const void *b, int btype, int ldb,
                               long long bstride, const void *beta, void *c, int ctype, int ldc,
                               long long cstride, int batch, int compute, int) {
  const int scalar = compute == 64 || compute == 65 ? F16 : F32;  // CUBLAS_COMPUTE_16F and _PEDANTIC
  if (load(beta, 0, scalar) != 0 || !known(atype) || !known(btype) || !known(ctype)) return INVALID_VALUE;
  submit(handle->stream, [=, scale = load(alpha, 0, scalar)] {
    for (long long s = 0; s < batch; ++s)
      for (size_t j = 0; j < size_t(n); ++j)
        for (size_t i = 0; i < size_t(m); ++i) {
          double sum = 0;
          for (size_t l = 0; l < size_t(k); ++l)
            sum += double(load(a, s * astride + (ta ? i * lda + l : l * lda + i), atype)) *
                   load(b, s * bstride + (tb ? l * ldb + j : j * ldb + l), btype);
          store(c, s * cstride + j * ldc + i, ctype, scale * float(sum));
        }
  });
  return SUCCESS;
}
}
