#!/bin/bash
# lapflow's training step beside PyTorch's, one process after the other, on a quiet machine.
# Usage: bench/train/run.sh [SCRATCH]        (needs cargo, uv and a C++ compiler for torch.compile)
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=${1:-$(mktemp -d)}
python=${LAPFLOW_BENCH_PYTHON:-$scratch/venv/bin/python}
if [ ! -x "$python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$python" -r bench/train/requirements.txt
fi
cargo build -q --release --workspace --example step_speed
ours=target/release/examples/step_speed
"$python" bench/train/compare.py $ours S 8 2
"$python" bench/train/compare.py $ours B 8 1
"$python" bench/train/compare.py $ours S 32 1
"$python" bench/train/compare.py $ours B 32 1
