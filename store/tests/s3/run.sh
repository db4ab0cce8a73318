#!/bin/bash
# Runs the S3 tests against moto, first directly, then through a proxy that fails at a stated rate.
# Usage: store/tests/s3/run.sh [RATE]        (needs cargo, curl and uv; exits non-zero on failure)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rate=${1:-0.05}
scratch=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
uv venv -q "$scratch/venv"
uv pip install -q --python "$scratch/venv/bin/python" -r "$here/requirements.txt"
free_port() { "$scratch/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
server=$(free_port)
"$scratch/venv/bin/moto_server" -H 127.0.0.1 -p "$server" >"$scratch/moto.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
  curl -sf -X PUT "http://127.0.0.1:$server/lapflow" >/dev/null && break
  sleep 0.2
done
proxy=$(free_port)
"$scratch/venv/bin/python" "$here/faulty_proxy.py" "$proxy" "$server" "$rate" &
pids+=($!)
sleep 1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_ALLOW_HTTP=true
# A connection that is never answered ends after this long.
export AWS_TIMEOUT=5s
export LAPFLOW_TEST_S3_URI=s3://lapflow/tests
cd "$here/../../.."
for port in "$server" "$proxy"; do
  AWS_ENDPOINT=http://127.0.0.1:$port cargo test -q --release --workspace --test s3 -- --nocapture
done
