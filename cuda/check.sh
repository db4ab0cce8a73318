#!/bin/bash
# Type-checks the cuda feature without any CUDA toolkit. Usage: cuda/check.sh [SCRATCH]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mkdir -p "${1:-$here/../.scratch/cuda-check}" && cd "${1:-$here/../.scratch/cuda-check}" && pwd)
cd "$here/.."
cargo fetch --locked -q
cuda/stand-in.sh "$scratch"
unset CUDA_HOME CUDA_PATH
export PATH=$scratch/bin:$PATH LIBRARY_PATH=$scratch/lib CUDA_COMPUTE_CAP=80
cargo clippy --release --locked --features cuda -- -D warnings
