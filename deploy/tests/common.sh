# What the scripts beside this file share: a program, a scratch folder, images and a config.
#
# LAPFLOW names the program; without it, it is built. Needs python3 for the images.
set -euo pipefail
deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${LAPFLOW:-}" ]; then
  (cd "$deploy/.." && cargo build -q --release --locked)
  LAPFLOW=${CARGO_TARGET_DIR:-$deploy/../target}/release/lapflow
fi
export LAPFLOW
scratch=$(mktemp -d)

# Says why and ends the test without failing.
skip() {
  echo "skipped: $*"
  exit 0
}

# Writes $2 PNGs of random pixels, 64x64, in four class folders below $1; every 37th is cut short.
write_images() {
  python3 - "$1" "$2" <<'PY'
import pathlib, random, struct, sys, zlib
root, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
for index in range(count):
    folder = root / f"class-{index % 4}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = b"".join(b"\0" + draw.randbytes(64 * 3) for _ in range(64))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    (folder / f"{index:05}.png").write_bytes(png if index % 37 else png[: len(png) // 2])
PY
}

# Writes the config of a job over $images into dataset $2 to file $1. The posterior's mean through
# the built-in autoencoder: some milliseconds an image.
write_config() {
  cat >"$1" <<TOML
[data]
source = "$images"
dataset = "$2"
size = 64
levels = 2
flip = true
batch = 8
shard_rows = 40
skip_fraction_max = 0.1
threads = 1
${3:-}
TOML
}

# Fails unless the datasets $1 and $2 hold the same rows: none twice, none missing, every column
# equal to the last bit.
same_rows() {
  "$python" - "$1" "$2" <<'PY'
import sys
import pyarrow as pa
from deltalake import DeltaTable

def rows(uri):
    table = DeltaTable(uri).to_pyarrow_table().sort_by([("id", "ascending"), ("view", "ascending")])
    keys = list(zip(table["id"].to_pylist(), table["view"].to_pylist()))
    assert len(set(keys)) == len(keys), f"{uri} holds a row twice"
    return table.combine_chunks()

left, right = map(rows, sys.argv[1:])
assert left.num_rows == right.num_rows, f"{left.num_rows} rows and {right.num_rows}"
assert left.num_rows > 0 and left.equals(right), "the rows differ"
print(f"{left.num_rows} rows, none twice, equal row for row to those of a single process")
PY
}

# A Python that reads Delta tables, in $python.
need_reader() {
  python=${LAPFLOW_DEPLOY_PYTHON:-$scratch/venv/bin/python}
  if [ ! -x "$python" ]; then
    command -v uv >/dev/null || skip "uv is not installed"
    uv venv -q "$scratch/venv"
    uv pip install -q --python "$python" deltalake==1.6.6 pyarrow==26.0.1
  fi
}

# Fails unless nothing of the job in config $1 is missing.
complete() {
  local missing
  missing=$("$LAPFLOW" encode "$1" --missing --json)
  case $missing in
    *'"missing":[]'*) echo "nothing is missing: $missing" ;;
    *) echo "shards are missing: $missing" && exit 1 ;;
  esac
}
