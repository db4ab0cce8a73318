#!/bin/bash
# Trains with mpirun on 2 and 4 ranks and compares with one process; then goes on with another number
# of ranks, and kills a rank. Usage: train/tests/mpi/run.sh [SCRATCH]
# Needs cargo, uv, and OpenMPI with its headers and libclang (on Debian: openmpi-bin libopenmpi-dev libclang-dev).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../../..
scratch=${1:-$(mktemp -d)}
mkdir -p "$scratch"
(cd "$root" && cargo build -q --release --locked --features mpi)
lapflow=${CARGO_TARGET_DIR:-$root/target}/release/lapflow
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 RAYON_NUM_THREADS=1

common=(--set "data.source=\"$root/ingest/tests/golden/crop\"" --set "data.dataset=\"$scratch/dataset\"")
train() { # NAME RANKS [WORD..]
  local name=$1 ranks=$2 command=("$lapflow")
  shift 2
  [ "$ranks" = 1 ] || command=(mpirun --oversubscribe --bind-to none -np "$ranks" "$lapflow")
  "${command[@]}" train "$here/tiny.toml" "${common[@]}" --set "train.folder=\"$scratch/$name\"" "$@"
}
"$lapflow" encode "$here/tiny.toml" "${common[@]}"
rm -rf "$scratch"/{one,two,four,changing,shared,killed}
train one 1
train two 2
train four 4
train changing 4 --set train.steps=12
train changing 2 --resume
train shared 4 --set train.shard_optimizer=true

# Rank 1 of 3 dies: the job ends, and says which.
train killed 3 --set train.batch=9 --set train.steps=100000 >"$scratch/killed.log" 2>&1 &
job=$!
until [ -s "$scratch/killed/metrics.jsonl" ]; do sleep 0.2; done
victim=$(for pid in $(pgrep -f "$scratch/killed"); do
  if tr '\0' '\n' <"/proc/$pid/environ" | grep -qx OMPI_COMM_WORLD_RANK=1; then echo "$pid"; fi
done | head -n 1)
start=$SECONDS
kill -9 "$victim"
if wait "$job"; then echo "the job outlived its rank"; exit 1; fi
echo "a job whose rank 1 was killed ended after $((SECONDS - start)) s: $(grep -m1 -o 'process rank 1.*signal 9[^.]*' "$scratch/killed.log")"

if [ ! -x "$scratch/venv/bin/python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$scratch/venv/bin/python" numpy==2.3.5 safetensors==0.8.0
fi
for name in two four changing shared; do
  "$scratch/venv/bin/python" "$here/compare.py" "$scratch/one" "$scratch/$name"
done
