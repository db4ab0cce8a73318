#!/bin/bash
# Trains with srun on 2 ranks, on a Slurm of this machine alone, and compares with one process; without
# --mpi=pmix the ranks would not find each other, and must refuse. Usage: train/tests/mpi/srun.sh
# Needs what run.sh and deploy/tests/slurm-up.sh need; skips, saying so, where Slurm is missing.
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../../..
LAPFLOW=${CARGO_TARGET_DIR:-$root/target}/release/lapflow
. "$root/deploy/tests/common.sh"
. "$root/deploy/tests/slurm-up.sh"
(cd "$root" && cargo build -q --release --locked --features mpi)
export OMPI_MCA_rmaps_base_oversubscribe=1 RAYON_NUM_THREADS=1

common=(--set "data.source=\"$root/ingest/tests/golden/crop\"" --set "data.dataset=\"$scratch/dataset\"")
train() { # NAME [LAUNCHER..]
  local name=$1
  shift
  "$@" "$LAPFLOW" train "$here/tiny.toml" "${common[@]}" --set "train.folder=\"$scratch/$name\""
}
"$LAPFLOW" encode "$here/tiny.toml" "${common[@]}"
train one
train two srun --mpi=pmix -n 2 --overcommit
if train none srun --mpi=none -n 2 --overcommit >"$scratch/none.log" 2>&1; then
  echo "two processes trained by themselves"; exit 1
fi
grep -m1 -h "MPI sees\|direct launched\|MPI_Init" "$scratch/none.log" || { tail "$scratch/none.log"; exit 1; }
uv venv -q "$scratch/venv"
uv pip install -q --python "$scratch/venv/bin/python" numpy==2.3.5 safetensors==0.8.0
"$scratch/venv/bin/python" "$here/compare.py" "$scratch/one" "$scratch/two"
