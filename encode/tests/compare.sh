#!/bin/bash
# Encodes real images with AutoencoderKLs of random weights and compares every stored level with
# diffusers and numpy. Usage: LAPFLOW_TEST_DATA=FOLDER encode/tests/compare.sh [IMAGES_WIDE]
#
# A narrow network encodes all images of imagenet-sample and celebahq-56, one of SD-VAE's width
# IMAGES_WIDE images of each (default 4; some seconds an image on a core). Needs uv, and cargo
# unless LAPFLOW names the program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=${LAPFLOW_TEST_DATA:-}
wide=${1:-4}
if [ ! -d "$data/imagenet-sample" ] || [ ! -d "$data/celebahq-56" ]; then
  echo "skipped: LAPFLOW_TEST_DATA names no folder with imagenet-sample and celebahq-56"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${LAPFLOW_COMPARE_PYTHON:-$scratch/venv/bin/python}
if [ ! -x "$python" ]; then
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$python" -r "$here/compare-requirements.txt"
fi
if [ -z "${LAPFLOW:-}" ]; then
  (cd "$here/../.." && cargo build -q --release --locked)
  LAPFLOW=${CARGO_TARGET_DIR:-$here/../../target}/release/lapflow
fi

# Encodes folder $1 at $2 pixels with the weights in $3, and compares.
compare() {
  local table=$scratch/table crops=$scratch/crops
  rm -rf "$table" "$crops"
  cat >"$scratch/config.toml" <<TOML
[data]
source = "$1"
dataset = "$table"
size = $2
levels = 3
batch = 4
shard_rows = 48
[autoencoder]
weights = "$3/diffusion_pytorch_model.safetensors"
TOML
  "$LAPFLOW" encode "$scratch/config.toml" 2>/dev/null >/dev/null
  "$LAPFLOW" ingest "$1" --size "$2" --out "$crops" 2>/dev/null >/dev/null
  echo "$(basename "$1"), $(basename "$3")"
  "$python" "$here/compare.py" "$table" "$1" "$3" --crops "$crops"
  "$python" "$here/compare.py" "$table" "$1" "$3"
}

"$python" "$here/compare.py" --random "$scratch/narrow" 32,32,64,64 2>/dev/null
"$python" "$here/compare.py" --random "$scratch/sd-vae-width" 2>/dev/null
for set in imagenet-sample celebahq-56; do
  compare "$data/$set" 256 "$scratch/narrow"
  mkdir -p "$scratch/few/$set"
  (cd "$data/$set" && find . -type f -name '*.[jJ]*' | sort | head -n "$wide") | while read -r file; do
    mkdir -p "$scratch/few/$set/$(dirname "$file")"
    ln -s "$data/$set/$file" "$scratch/few/$set/$file"
  done
  compare "$scratch/few/$set" 256 "$scratch/sd-vae-width"
done
echo "every stored level agrees"
