#!/bin/bash
# The loader beside its peers, on the same samples, one pinned core, interleaved.
# Usage: bench/store/run.sh [SCRATCH] [ROWS] [REPEATS]     (needs cargo, uv; 4 GB in SCRATCH)
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=${1:-$(mktemp -d)} rows=${2:-50000} repeats=${3:-3}
python=${LAPFLOW_BENCH_PYTHON:-$scratch/venv/bin/python}
if [ ! -x "$python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$python" -r bench/store/requirements.txt
fi
cargo build -q --release --locked --workspace --example loader_bench
ours=target/release/examples/loader_bench
peers="$python bench/store/peers.py"
peer_names="mosaic webdataset datasets datasets-stream litdata"
pin="taskset -c 1"
export MIMALLOC_PURGE_DELAY=-1 # as the binary sets it
quiet() { "$@" 2>/dev/null | grep '^{' || echo "{\"name\": \"${*: -2:1}\", \"failed\": true}"; }

mkdir -p "$scratch/peers"
for codec in zstd:1 none; do
  [ -d "$scratch/lapflow-$codec" ] || $pin $ours write "$scratch/lapflow-$codec" "$rows" $codec
done
for name in mosaic webdataset datasets litdata; do
  [ -d "$scratch/peers/$name" ] || quiet $pin $peers write $name "$scratch/peers/$name" "$rows"
done
ln -sfn datasets "$scratch/peers/datasets-stream"
for _ in $(seq "$repeats"); do
  for codec in zstd:1 none; do
    echo "codec $codec"
    $pin $ours read "$scratch/lapflow-$codec" epochs=10
    $pin $ours read "$scratch/lapflow-$codec" epochs=10 levels=1
    quiet $pin $peers read pyarrow "$scratch/lapflow-$codec/data"
  done
  for name in $peer_names; do
    quiet $pin timeout 300 $peers read $name "$scratch/peers/$name"
  done
  for name in $peer_names; do
    quiet $pin timeout 300 $peers resume $name "$scratch/peers/$name" "$rows"
  done
  quiet $pin $peers read floor .
done
