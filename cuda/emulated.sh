#!/bin/bash
# Runs every kernel on the emulated GPU in three orders of threads and under AddressSanitizer, with
# planted faults that must be found; then encodes, trains (one rank and two), resumes, samples and runs
# the demo on it and on the CPU, and compares. Nothing here meets a GPU, but all calls of the CUDA path are made, and
# our kernels and Candle's compute.
# Usage: cuda/emulated.sh [SCRATCH]          (needs cargo, g++ and uv)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mkdir -p "${1:-$here/../.scratch/cuda-emulated}" && cd "${1:-$here/../.scratch/cuda-emulated}" && pwd)
cd "$here/.."
source cuda/stand-in.sh
cuda/emulation/build.sh "$scratch"
cargo build -q --release --locked --features cuda,nccl
lapflow=${CARGO_TARGET_DIR:-target}/release/lapflow

# Where there is no driver, the same binary runs on the CPU and says so of cuda:0.
"$lapflow" --help >/dev/null
if answer=$("$lapflow" --device cuda:0 flops --preset demo 2>&1); then
  echo "cuda:0 opened without a driver"; exit 1
fi
echo "without a driver: $answer"
"$lapflow" flops --preset demo >/dev/null
# Any other answer than that there is no GPU (100) ends a command that did not ask for the CPU.
auto() { EMU_FAIL=$1 LD_LIBRARY_PATH=$scratch "$lapflow" flops --preset demo 2>&1; }
auto 100 >/dev/null
for code in 2 803; do
  if answer=$(auto $code); then echo "--device auto passed over error $code"; exit 1; fi
  echo "with error $code: $answer"
done

doctor() { # LIBRARIES ORDER: threads ascending (0), descending (1), shuffled (2)
  EMU_ORDER=$2 LD_LIBRARY_PATH=$1 "$lapflow" --device cuda:0 doctor --seconds 0 --seed $RANDOM
}
for order in 0 1 2; do doctor "$scratch" "$order"; done

# Once more where every access outside of its memory, global or shared, ends the process, and every
# misaligned one and other undefined behaviour.
sanitize=address,undefined
sanitized() { LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 doctor "$1" 0; }
SANITIZE=$sanitize cuda/emulation/build.sh "$scratch/sanitized"
sanitized "$scratch/sanitized" 2>/dev/null | tail -n 1

# faulty NAME FAULT: kernels with a fault, a sed script, in them.
faulty() {
  mkdir -p "$scratch/$1/objects" "$scratch/$1/kernels"
  cp -p "$scratch/${SANITIZE:+sanitized/}objects"/*.kernel.o "$scratch/$1/objects"
  for kernel in model/src/kernels/cuda/*.cu*; do sed "$2" "$kernel" >"$scratch/$1/kernels/$(basename "$kernel")"; done
  cuda/emulation/build.sh "$scratch/$1" "$scratch/$1/kernels"
}
missed() { echo "a planted fault was not found: $*"; exit 1; }

# Without its barriers a kernel must fail.
faulty barriers 's/__syncthreads();//'
for order in 0 1; do
  if doctor "$scratch/barriers" "$order"; then missed barriers; fi
done >"$scratch/barriers/log" 2>&1
for kernel in "attention.*f32" "attention.*bf16" "modulated norm" "gated residual"; do
  grep -q "^$kernel.*WRONG" "$scratch/barriers/log" || missed "barriers of $kernel"
done
echo "with barriers removed: $(tail -n 1 "$scratch/barriers/log")"

# Shared memory that was not written must be seen as such.
faulty unwritten 's/if (threadIdx.x % WARP == 0) sums/if (threadIdx.x % WARP == 0 \&\& threadIdx.x > 0) sums/'
if doctor "$scratch/unwritten" 0 >"$scratch/unwritten/log" 2>&1; then missed unwritten; fi
grep -q "^group norm.*NaN.*WRONG" "$scratch/unwritten/log" || missed unwritten
echo "shared memory unwritten: $(tail -n 1 "$scratch/unwritten/log")"

# One token too many of global memory; more of shared memory than was asked for; misaligned rows in it.
for fault in 's/token < end/token <= end/' 's/stride_of = D + 8/stride_of = D + 16/' 's/stride_of = D + 8/stride_of = D + 4/'; do
  SANITIZE=$sanitize faulty outside "$fault"
  if sanitized "$scratch/outside" >"$scratch/outside/log" 2>&1; then missed "$fault"; fi
  found=$(grep -m1 -oE "AddressSanitizer: (heap-buffer-overflow|use-after-poison)|misaligned address" "$scratch/outside/log") || missed "$fault"
  echo "$fault: $found"
done

for device in cpu cuda:0; do
  run=$scratch/run-${device%:*}
  rm -rf "$run"
  words=(--device "$device" --set "data.source=\"$here/../ingest/tests/golden/crop\""
    --set "data.dataset=\"$run/dataset\"" --set "train.folder=\"$run/run\"")
  [ "$device" = cpu ] || export LD_LIBRARY_PATH=$scratch
  "$lapflow" encode cuda/tiny.toml "${words[@]}" 2>/dev/null
  # Where nothing waits for a copy, that must fail or be wrong.
  [ "$device" = cpu ] || (EMU_NO_WAITS=1 "$lapflow" encode cuda/tiny.toml "${words[@]}" \
    --set "data.dataset=\"$run/unwaited\"" || true) >/dev/null 2>&1
  # The network trains on the same latents on both.
  words+=(--set "data.dataset=\"$scratch/run-cpu/dataset\"")
  "$lapflow" train cuda/tiny.toml "${words[@]}" --set train.steps=3 2>/dev/null
  "$lapflow" train cuda/tiny.toml "${words[@]}" --resume 2>/dev/null
  LAPFLOW_LOG=info "$lapflow" --device "$device" sample "$run/run" --count 3 --out "$run/samples.npz" 2>"$run/sample.log"
  # A GPU must have recorded the network's passes of both segments and repeated them.
  if [ "$device" != cpu ]; then
    grep -q "repeats what it has recorded shapes=2" "$run/sample.log" || missed "recordings"
    EMU_NO_GRAPHS=1 "$lapflow" --device "$device" sample "$run/run" --count 3 --out "$run/unrecorded.npz" 2>"$run/sample.log"
    grep -q "refuses to record" "$run/sample.log" || missed "a refused recording"
    cmp "$run/samples.npz" "$run/unrecorded.npz"
  fi
  "$lapflow" train cuda/tiny.toml "${words[@]}" --set "train.folder=\"$run/bf16\"" \
    --set 'train.precision="bf16"' --set train.recompute=true 2>/dev/null
  # The whole of the demo, small.
  "$lapflow" --device "$device" demo --out "$run/demo" --pictures 2 --set data.size=16 --set model.width=16 \
    --set model.depth=1 --set model.heads=2 --set model.patch=1 --set train.steps=3 --set train.batch=4 \
    --set train.sample_every=0 --set sample.steps=1 --set 'sample.solver="euler"' --set sample.cfg=1.0
done
# Two ranks over the emulated NCCL, each with its share of the optimizer's state and a GPU of its own;
# started as torchrun does.
ranks() { # NAME [WORD..]
  local name=$1
  shift
  for rank in 0 1; do
    RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 "$lapflow" train cuda/tiny.toml "${words[@]:2}" \
      --set "train.folder=\"$scratch/run-cuda/$name\"" --set train.shard_optimizer=true "$@" 2>"$scratch/rank-$rank.log" &
  done
  wait -n && wait -n || { cat "$scratch"/rank-?.log; return 1; }
}
ranks ranks --set train.steps=3
ranks ranks --resume
# Where streams do not wait for each other, that must fail or be wrong.
(EMU_NO_WAITS=1 ranks unwaited --set train.steps=1 || true) >/dev/null 2>&1
unset LD_LIBRARY_PATH
if [ ! -x "$scratch/venv/bin/python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$scratch/venv/bin/python" numpy==2.3.5 safetensors==0.8.0 pyarrow==22.0.0 pillow==13.0.0
fi
"$scratch/venv/bin/python" cuda/compare.py "$scratch/run-cpu" "$scratch/run-cuda"
