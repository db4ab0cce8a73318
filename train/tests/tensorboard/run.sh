#!/bin/bash
# Reads a run's event files with TensorBoard's own reader, in a scratch environment.
# Usage: train/tests/tensorboard/run.sh RUN_FOLDER        (needs uv; exits non-zero on failure)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${LAPFLOW_TENSORBOARD_PYTHON:-$scratch/venv/bin/python}
if [ ! -x "$python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$python" -r "$here/requirements.txt"
fi
"$python" "$here/read.py" "$1"
