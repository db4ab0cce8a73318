#!/bin/bash
# Runs encode.slurm as an array on a Slurm of this machine alone, kills tasks in the middle, has
# Slurm requeue them, and compares the table row for row with a single process's.
# Usage: deploy/tests/slurm.sh [IMAGES]
#
# Needs python3, uv and what slurm-up.sh does; skips, saying so, where something is missing.
. "$(dirname "$0")/common.sh"
images_count=${1:-600}
workers=4
. "$deploy/tests/slurm-up.sh"
need_reader

images=$scratch/images
write_images "$images" "$images_count"
write_config "$scratch/alone.toml" "$scratch/alone"
write_config "$scratch/array.toml" "$scratch/array"
"$LAPFLOW" encode "$scratch/alone.toml" 2>/dev/null

# The share of a task is what --shard says; a requeued task keeps its id and so its share.
job=$(cd "$scratch" && sbatch --parsable --array=0-$((workers - 1)) \
  --export=ALL,WORKERS=$workers,CONFIG="$scratch/array.toml" "$deploy/encode.slurm")
killed=0
rounds=0
while [ "$(squeue -h -j "$job" | wc -l)" -gt 0 ] && [ "$rounds" -lt 400 ]; do
  rounds=$((rounds + 1))
  sleep 0.4
  [ "$killed" -lt 6 ] && [ $((rounds % 5)) = 0 ] || continue
  task=$(squeue -h -j "$job" -t R -o %i | head -n 1)
  [ -n "$task" ] || continue
  # Alternately as when a node dies (no signal that could be handled), and as on preemption.
  if [ $((killed % 2)) = 0 ]; then
    scancel --batch --signal=KILL "$task" && scontrol requeue "$task" || true
  else
    scontrol requeue "$task" || true
  fi && killed=$((killed + 1))
done
echo "$killed tasks killed and requeued; $(ls "$scratch"/encode-*.log | wc -l) logs:"
tail -qn 1 "$scratch"/encode-*.log
# Tasks that were killed for good are submitted again, all of them: what is done is skipped.
(cd "$scratch" && sbatch --wait --array=0-$((workers - 1)) \
  --export=ALL,WORKERS=$workers,CONFIG="$scratch/array.toml" "$deploy/encode.slurm" >/dev/null)
complete "$scratch/array.toml"
same_rows "$scratch/array" "$scratch/alone"

# The same without --shard: the share comes from Slurm's own variables, here array x srun.
write_config "$scratch/srun.toml" "$scratch/srun"
(cd "$scratch" && sbatch --wait --array=3-4 -n 1 --output=srun-%a.log \
  --wrap "srun -n 1 '$LAPFLOW' encode '$scratch/srun.toml'" >/dev/null)
grep -h "part . of\|encode: part" "$scratch"/srun-*.log
complete "$scratch/srun.toml"
same_rows "$scratch/srun" "$scratch/alone"
