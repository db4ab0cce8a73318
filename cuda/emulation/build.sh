#!/bin/bash
# Builds a libcuda, libcublas, libcurand and libnccl that run our kernels and Candle's on the host, from their
# source: for tests of the CUDA path on a machine without a GPU.
# Usage: cuda/emulation/build.sh OUT [KERNELS]; then LD_LIBRARY_PATH=OUT lapflow --device cuda:0 ...
# KERNELS is another folder for our kernels; SANITIZE=address,undefined in the environment finds what
# they touch outside their memory or misaligned (with LD_PRELOAD=libasan.so). What is in OUT and newer than its source stays.
#
# Device memory is host memory filled with NaN when it is allocated. Functions that are not
# emulated say so and fail. Needs g++ and the crates in cargo's registry (cargo fetch).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/objects"
out=$(cd "$1" && pwd)
objects=$out/objects
source "$here/../crates.sh"
kernels=$(crate candle-kernels)/src
ours=${2:-$here/../../model/src/kernels/cuda}
flags=(${SANITIZE:+-fsanitize=$SANITIZE -fno-sanitize-recover=undefined} -std=c++17 -O2 -fno-strict-aliasing -fno-extern-tls-init -fPIC -w)
device=(-fpermissive -DCUDA_EMU -D__CUDA_ARCH__=800 -D__CUDACC_VER_MAJOR__=13 -D__CUDACC_VER_MINOR__=0
  -I"$here/include" -I"$here" -include cuda_fp16.h -I"$kernels" -I"$ours")

# Kernels for the host, each with an entry that the emulated driver finds by name.
for source in "$kernels"/{fill,affine,ternary,binary,unary,indexing,reduce,cast,conv,sort}.cu "$ours"/*.cu; do
  name=$(basename "$source" .cu)
  needs=("$source" "$here/emulator.h")
  [ "$(dirname "$source")" != "$ours" ] || needs+=("$ours"/*.cuh)
  if [ -e "$objects/$name.kernel.o" ] && [ -z "$(find "${needs[@]}" -newer "$objects/$name.kernel.o")" ]; then continue; fi
  g++ "${flags[@]}" "${device[@]}" -O0 -x c++ -c "$source" -o "$objects/plain.o"
  {
    grep -h "extern __shared__" "$source" |
      sed -E 's/.*__shared__ +(.*[^ ]) +([a-z_]+)\[\].*/EMU_DYN_SHARED(\1, \2)/' | sort -u || true
    echo "#include \"$source\""
    nm --defined-only "$objects/plain.o" | awk '$2 == "T" && $3 !~ /^_Z/ {print "EMU_EXPORT(" $3 ")"}'
  } >"$objects/$name.cpp"
  g++ "${flags[@]}" "${device[@]}" -c "$objects/$name.cpp" -o "$objects/$name.kernel.o"
done

# library MODULE SONAME SOURCE [OBJECT..]: what SOURCE defines, every other function of the module failing.
library() {
  local module=$1 soname=$2 source=$3
  shift 3
  g++ "${flags[@]}" -DCUDA_EMU -c "$source" -o "$objects/$module.o"
  nm --defined-only "$objects/$module.o" | awk '$2 == "T" {print $3}' | sort -u >"$objects/$module.there"
  {
    echo '#include <stdio.h>'
    functions "$module" | grep -vxFf "$objects/$module.there" |
      sed 's/.*/int &(void) { fprintf(stderr, "emulation: & is missing\\n"); return 801; }/'
  } >"$objects/$module-rest.c"
  gcc -fPIC -w -c "$objects/$module-rest.c" -o "$objects/$module-rest.o"
  # Device functions that several kernel files repeat are the same in each.
  g++ ${SANITIZE:+-fsanitize=$SANITIZE} -shared -Wl,-z,muldefs -Wl,-soname,"$soname" "$objects/$module.o" "$objects/$module-rest.o" "$@" -o "$out/$soname" -ldl
}
library driver libcuda.so.1 "$here/driver.cpp" "$objects"/*.kernel.o
library cublas libcublas.so.13 "$here/cublas.cpp"
library curand libcurand.so.10 "$here/curand.cpp"
library nccl libnccl.so.2 "$here/nccl.cpp"
