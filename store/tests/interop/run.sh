#!/bin/bash
# Reads datasets from Python with the readers named in requirements.txt, in a scratch environment.
# Usage: store/tests/interop/run.sh        (needs cargo and uv; exits non-zero on failure)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${LAPFLOW_INTEROP_PYTHON:-$scratch/venv/bin/python}
if [ ! -x "$python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$python" -r "$here/requirements.txt"
fi
cd "$here/../../.."
# The whole workspace, so that its dependencies are those already built.
cargo build -q --release --workspace --example fixture
export HF_HOME=$scratch/hf HF_HUB_OFFLINE=1
for dtype in f16 bf16 f32; do
  for posterior in mean moments; do
    dataset=$scratch/$dtype-$posterior
    "${CARGO_TARGET_DIR:-target}/release/examples/fixture" "$dataset" $dtype $posterior 60
    "$python" "$here/readers.py" "$dataset" $dtype $posterior 60
  done
done
"$python" "$here/readers.py" "$here/../golden/v1" f16 mean 60
"$python" "$here/../../../bench/store/shuffle.py"
