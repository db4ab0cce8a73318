#!/bin/bash
# Type-checks the GPU features without any CUDA toolkit. Usage: cuda/check.sh [SCRATCH]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mkdir -p "${1:-$here/../.scratch/cuda-check}" && cd "${1:-$here/../.scratch/cuda-check}" && pwd)
cd "$here/.."
source cuda/stand-in.sh
cargo clippy --release --locked --features cuda,cudnn,nccl -- -D warnings
