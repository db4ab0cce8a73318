// cuRAND on the host.
#include <cstddef>
#include <random>

using Generator = std::mt19937;
enum { SUCCESS = 0, LENGTH_NOT_MULTIPLE = 105 };

extern "C" {
int curandCreateGenerator(Generator **generator, int) { *generator = new Generator(0); return SUCCESS; }
int curandDestroyGenerator(Generator *generator) { delete generator; return SUCCESS; }
int curandSetStream(Generator *, void *) { return SUCCESS; }
int curandSetPseudoRandomGeneratorSeed(Generator *generator, unsigned long long seed) {
  generator->seed(seed);
  return SUCCESS;
}
int curandGenerateUniform(Generator *generator, float *out, size_t n) {
  std::uniform_real_distribution<float> uniform;
  for (size_t i = 0; i < n; ++i) out[i] = 1.f - uniform(*generator);  // in (0, 1]
  return SUCCESS;
}
int curandGenerateNormal(Generator *generator, float *out, size_t n, float mean, float std) {
  if (n % 2) return LENGTH_NOT_MULTIPLE;  // as cuRAND's own
  std::normal_distribution<float> normal(mean, std);
  for (size_t i = 0; i < n; ++i) out[i] = normal(*generator);
  return SUCCESS;
}
}
