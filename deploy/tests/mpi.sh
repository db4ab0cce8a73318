#!/bin/bash
# Runs encode-mpi.sh under Open MPI, and lapflow under mpirun without a share named, and compares
# the tables row for row with a single process's. Usage: deploy/tests/mpi.sh [IMAGES]
#
# Needs mpirun (Debian: openmpi-bin), python3 and uv; skips, saying so, where one is missing.
. "$(dirname "$0")/common.sh"
trap 'rm -rf "$scratch"' EXIT
command -v mpirun >/dev/null || skip "mpirun is not installed"
need_reader
images=$scratch/images
write_images "$images" "${1:-600}"
for name in alone script detected; do
  write_config "$scratch/$name.toml" "$scratch/$name"
done
"$LAPFLOW" encode "$scratch/alone.toml" 2>/dev/null
mpi=(mpirun --allow-run-as-root --oversubscribe -np 3)
"${mpi[@]}" "$deploy/encode-mpi.sh" "$scratch/script.toml" >/dev/null
complete "$scratch/script.toml"
same_rows "$scratch/script" "$scratch/alone"
# One rank is killed in the middle, mpirun ends the others; the same line goes on.
("${mpi[@]}" "$LAPFLOW" encode "$scratch/detected.toml" >"$scratch/first.log" 2>&1 || true) &
for _ in $(seq 200); do
  pid=$(pgrep -n -f "encode $scratch/detected.toml" || true)
  [ "$(ls "$scratch/detected/_delta_log" 2>/dev/null | grep -c json)" -ge 3 ] && break
  sleep 0.1
done
[ -z "$pid" ] || kill -KILL "$pid" || true
wait
echo "a rank was killed with $(ls "$scratch/detected/_delta_log" | grep -c json) commits there"
"${mpi[@]}" "$LAPFLOW" encode "$scratch/detected.toml" 2>&1 >/dev/null | grep "part ."
complete "$scratch/detected.toml"
same_rows "$scratch/detected" "$scratch/alone"
