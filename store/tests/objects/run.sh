#!/bin/bash
# Runs the tests of object stores; exits non-zero on failure. Needs cargo, curl and uv.
#   store/tests/objects/run.sh [RATE]   S3 (moto), S3 through a proxy that fails at RATE, and Google's API
#   store/tests/objects/run.sh azure    Azure (azurite, from npm)
#   store/tests/objects/run.sh signed   an S3 server that checks signatures (s3s-fs 0.14.1, which must be
#                                       on the path; it lets two writers race, so there is one)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-0.05}
scratch=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
start() { "$@" >>"$scratch/servers.log" 2>&1 & pids+=($!); }
until_it() { for _ in $(seq 100); do "$@" && return; sleep 0.2; done; cat "$scratch/servers.log"; exit 1; }
bucket_at() { until_it curl -sf -o "$scratch/answer" -X PUT "http://127.0.0.1:$1/lapflow"; }
# Arguments: the dataset's folder, and what the environment must hold.
run_tests() {
  env LAPFLOW_TEST_OBJECTS_URI="$1" "${@:2}" \
    cargo test -q --release --workspace --test objects -- --nocapture
}
cd "$here/../../.."
server=$(free_port)
# Connections that are never answered end after AWS_TIMEOUT.
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_ALLOW_HTTP=true AWS_TIMEOUT=5s

case $what in
azure)
  npm install --silent --no-save --prefix "$scratch" azurite@3.35.0
  start "$scratch/node_modules/.bin/azurite-blob" --silent --disableTelemetry --skipApiVersionCheck \
    --blobPort "$server" --location "$scratch/data"
  uv run -q --with azure-storage-blob==12.26.0 python "$here/container.py" "http://127.0.0.1:$server"
  run_tests az://lapflow/tests AZURE_STORAGE_USE_EMULATOR=true AZURE_ALLOW_HTTP=true \
    AZURITE_BLOB_STORAGE_URL="http://127.0.0.1:$server"
  ;;
signed)
  mkdir -p "$scratch/data/lapflow"
  start s3s-fs --access-key test --secret-key test --host 127.0.0.1 --port "$server" "$scratch/data"
  sleep 1
  run_tests s3://lapflow/tests AWS_ENDPOINT="http://127.0.0.1:$server" LAPFLOW_TEST_OBJECTS_WRITERS=1
  # Signatures are looked at: a wrong secret is refused.
  answer=$(curl -s -o "$scratch/answer" -w '%{http_code}' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
    --aws-sigv4 aws:amz:us-east-1:s3 --user test:wrong "http://127.0.0.1:$server/lapflow?list-type=2")
  [ "$answer" = 403 ] || { echo "a wrong secret was answered with $answer" >&2; exit 1; }
  ;;
*)
  uv venv -q "$scratch/venv"
  uv pip install -q --python "$scratch/venv/bin/python" -r "$here/requirements.txt"
  start "$scratch/venv/bin/moto_server" -H 127.0.0.1 -p "$server"
  bucket_at "$server"
  run_tests s3://lapflow/tests AWS_ENDPOINT="http://127.0.0.1:$server"
  proxy=$(free_port)
  "$scratch/venv/bin/python" "$here/faulty_proxy.py" "$proxy" "$server" "$what" &
  pids+=($!)
  sleep 1
  run_tests s3://lapflow/tests AWS_ENDPOINT="http://127.0.0.1:$proxy"
  google=$(free_port)
  start "$scratch/venv/bin/python" "$here/gcs.py" "$google"
  bucket_at "$google"
  run_tests gs://lapflow/tests GOOGLE_ALLOW_HTTP=true GOOGLE_SERVICE_ACCOUNT_KEY="{\"gcs_base_url\":
    \"http://127.0.0.1:$google\", \"disable_oauth\": true, \"client_email\": \"\", \"private_key\": \"\",
    \"private_key_id\": \"\"}"
  ;;
esac
