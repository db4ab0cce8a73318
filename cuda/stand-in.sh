# Sourced in the project's root with `scratch` set: from then on the feature builds without any CUDA
# toolkit, for type checks and for the emulation. A stand-in for nvcc makes empty PTX files, and of what
# candle-kernels links traps of the names that it declares; stubs.sh makes the libraries.
cargo fetch --locked -q
mkdir -p "$scratch/bin"
cuda/stubs.sh "$scratch/lib"
cat >"$scratch/bin/nvcc" <<'NVCC'
#!/bin/bash
set -eu
source= output= folder= make=object objects=()
while [ $# -gt 0 ]; do
  case $1 in
  --version) printf 'nvcc: stand-in\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'; exit ;;
  -o) output=$2; shift ;;
  --output-directory) folder=$2; shift ;;
  --ptx) make=ptx ;;
  --lib) make=library ;;
  *.cu) source=$1 ;;
  *.o) objects+=("$1") ;;
  esac
  shift
done
case $make in
ptx) : >"$folder/$(basename "${source%.cu}").ptx" ;;
library) rm -f "$output"; ar crs "$output" "${objects[@]}" ;;
object)
  case $source in
  *moe_gguf.cu) sed -n 's/.*pub fn \([A-Za-z0-9_]*\).*/void \1(void) { __builtin_trap(); }/p' src/ffi.rs ;;
  esac | gcc -x c -fPIC -w -c -o "$output" - ;;
esac
NVCC
chmod +x "$scratch/bin/nvcc"
unset CUDA_HOME CUDA_PATH
export PATH=$scratch/bin:$PATH LIBRARY_PATH=$scratch/lib CUDA_COMPUTE_CAP=80
