#!/bin/bash
# Compiles our kernels for three generations of GPUs with warnings as errors, and prints what ptxas
# says of registers, shared memory and spills. Usage: cuda/ptx.sh [SCRATCH]     (needs uv and g++)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mkdir -p "${1:-$here/../.scratch/cuda}" && cd "${1:-$here/../.scratch/cuda}" && pwd)
source "$here/toolkit.sh"
for kernel in "$here"/../model/src/kernels/cuda/*.cu; do
  for arch in 80 90 100; do
    nvcc -std=c++17 -O3 -Werror all-warnings -Xptxas -v,-warn-spills -arch "sm_$arch" -cubin -o "$scratch/kernel.cubin" "$kernel" 2>&1 |
      sed -nE "s/.*Compiling entry function '([^']*)'.*/\1/p; s/.*(Used .*)/  sm_$arch \1/p; s/.*[^0-9]([1-9][0-9]* bytes spill)/  \1/p; /error|warning/p" |
      awk '/error|warning/ {print; next} /^  /{print name $0; next} {name = $0}'
    [ "${PIPESTATUS[0]}" = 0 ] || exit 1
  done
done
