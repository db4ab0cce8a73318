#!/bin/bash
# Builds lapflow for NVIDIA GPUs on a machine that need not have one, with a CUDA toolkit of Python
# packages in a scratch folder. Usage: cuda/build.sh [SCRATCH]      (needs uv, cargo and g++)
#
# CUDA_COMPUTE_CAP is the oldest GPU that is to run it (80: A100); PTX runs on newer ones too.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mkdir -p "${1:-$here/../.scratch/cuda}" && cd "${1:-$here/../.scratch/cuda}" && pwd)
source "$here/toolkit.sh"
cd "$here/.."
cargo fetch --locked -q
cuda/stubs.sh "$scratch/lib"
ln -sf "$CUDA_HOME/lib/libcudart_static.a" "$scratch/lib/libcudart.a"
export LIBRARY_PATH=$scratch/lib
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-2}
cargo build --release --locked --features "${LAPFLOW_FEATURES:-cuda,nccl}"
