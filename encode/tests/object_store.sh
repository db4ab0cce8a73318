#!/bin/bash
# Runs the object store test against moto, installed in a scratch environment.
# Usage: encode/tests/object_store.sh        (needs cargo and uv; exits non-zero on failure)
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
uv venv -q "$scratch/venv"
uv pip install -q --python "$scratch/venv/bin/python" -r store/tests/objects/requirements.txt
export LAPFLOW_MOTO_SERVER=$scratch/venv/bin/moto_server
# The whole workspace, so that its dependencies are those already built.
cargo test -q --release --workspace --test object_store -- --nocapture | tee "$scratch/log"
grep -q "the same rows as on disk" "$scratch/log"
