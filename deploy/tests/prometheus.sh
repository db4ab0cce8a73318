#!/bin/bash
# Follows a folder with `lapflow encode --watch` and has Debian's Prometheus scrape it while images
# arrive; then kills the watcher, goes on, and ends it with SIGTERM.
# Usage: deploy/tests/prometheus.sh [IMAGES]
#
# Needs prometheus and promtool (Debian: prometheus), curl and python3; skips, saying so, where one
# is missing.
. "$(dirname "$0")/common.sh"
for program in prometheus promtool curl python3; do
  command -v $program >/dev/null || skip "$program is not installed"
done
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
server=$(free_port)
count=${1:-200}

images=$scratch/inbox
write_images "$scratch/all" "$count"
mkdir "$images"
cat >"$scratch/prometheus.yml" <<YAML
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
  - job_name: lapflow
    static_configs: [{ targets: ["127.0.0.1:$port"] }]
YAML
promtool check config "$scratch/prometheus.yml" >/dev/null
prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/tsdb" \
  --web.listen-address="127.0.0.1:$server" >"$scratch/prometheus.log" 2>&1 &
pids+=($!)

write_config "$scratch/watch.toml" "$scratch/latents" '
[data.watch]
poll_seconds = 0.2
settle_seconds = 0.2
age_seconds = 1
classes = ["class-0", "class-1", "class-2", "class-3"]
'
watch() {
  "$LAPFLOW" encode "$scratch/watch.toml" --watch --metrics "127.0.0.1:$port" >>"$scratch/watch.log" 2>&1 &
  watcher=$!
  pids+=("$watcher")
}
# The value of a figure as Prometheus has it.
ask() {
  curl -sfG "http://127.0.0.1:$server/api/v1/query" --data-urlencode "query=$1" |
    python3 -c 'import json, sys; found = json.load(sys.stdin)["data"]["result"]; print(float(found[0]["value"][1]) if found else "none")'
}
# Waits until Prometheus has the value $2 for $1.
await() {
  for _ in $(seq 300); do
    [ "$(ask "$1" 2>/dev/null)" = "$2" ] && return
    sleep 0.3
  done
  echo "$1 is $(ask "$1"), expected $2"
  tail -5 "$scratch/watch.log"
  exit 1
}
bring() {
  (cd "$scratch/all" && find . -name '*.png' | sort | sed -n "$1") | while read -r file; do
    mkdir -p "$images/$(dirname "$file")"
    cp "$scratch/all/$file" "$images/$(dirname "$file")/.arriving"
    mv "$images/$(dirname "$file")/.arriving" "$images/$file"
  done
}

watch
await up 1.0
curl -sf "http://127.0.0.1:$port/metrics" | promtool check metrics || echo "(promtool's advice above)"
[ "$(curl -sf "http://127.0.0.1:$port/healthz")" = ok ]
half=$((count / 2))
bring "1,${half}p"
await 'lapflow_encode_rows_committed_total + on(instance) 2 * sum by(instance) (lapflow_encode_skipped_total or on(instance) lapflow_encode_polls_total * 0)' "$((2 * half)).0"
kill -KILL "$watcher"
await up 0.0
bring "$((half + 1)),${count}p"
watch
await 'lapflow_encode_rows_committed_total + on(instance) 2 * sum by(instance) (lapflow_encode_skipped_total or on(instance) lapflow_encode_polls_total * 0)' "$((2 * (count - half))).0"
for query in 'lapflow_encode_stage_occupancy{stage="encode"}' 'lapflow_encode_queue_length{queue="batches"}' \
  lapflow_encode_bytes_total 'sum(lapflow_encode_skipped_total)' lapflow_encode_commit_seconds_count \
  'histogram_quantile(0.9, lapflow_encode_commit_seconds_bucket)'; do
  value=$(ask "$query")
  [ "$value" != none ] || { echo "Prometheus has no $query"; exit 1; }
  echo "$query = $value"
done
before=$(date +%s.%N)
kill -TERM "$watcher"
status=0
wait "$watcher" || status=$?
[ "$status" = 0 ] || { echo "SIGTERM ended the watcher with status $status"; exit 1; }
python3 -c "import time; print(f'SIGTERM: ended with status 0 after {time.time() - $before:.1f} s')"
"$LAPFLOW" encode "$scratch/watch.toml" --missing --json | tee "$scratch/missing.json"
python3 - "$scratch/missing.json" "$count" <<'PY'
import json, sys
found, count = json.load(open(sys.argv[1])), int(sys.argv[2])
assert found["open"] == [] and found["rows"] + 2 * found["skips"] == 2 * count, found
print(f"{found['rows']} rows and {found['skips']} skips of {count} images, across a kill -9")
PY
