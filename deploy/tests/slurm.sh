#!/bin/bash
# Runs encode.slurm as an array on a Slurm of this machine alone, kills tasks in the middle, has
# Slurm requeue them, and compares the table row for row with a single process's.
# Usage: deploy/tests/slurm.sh [IMAGES]
#
# Needs root (munge, slurmctld and slurmd run as their own users), python3, uv, and Debian's
# packages slurmctld slurmd slurm-client munge; skips, saying so, where one is missing.
. "$(dirname "$0")/common.sh"
images_count=${1:-600}
workers=4
for program in slurmctld slurmd sbatch munged; do
  command -v $program >/dev/null || skip "$program is not installed"
done
[ "$(id -u)" = 0 ] || skip "not root"
need_reader

stop() {
  SLURM_CONF=$slurm/slurm.conf scontrol shutdown >/dev/null 2>&1 || true
  [ -z "${munge_pid:-}" ] || kill "$munge_pid" 2>/dev/null || true
  sleep 1
  rm -rf "$scratch"
}
slurm=$scratch/slurm
trap stop EXIT
mkdir -p "$slurm"/{state,spool,log}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge /run/munge
  runuser -u munge -- munged --pid-file=/run/munge/munged.pid
  munge_pid=$(cat /run/munge/munged.pid)
fi
host=$(hostname -s)
cat >"$slurm/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldLogFile=$slurm/log/slurmctld.log
SlurmdLogFile=$slurm/log/slurmd.log
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
JobRequeue=1
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$slurm/slurm.conf
slurmctld
slurmd
for _ in $(seq 100); do
  sinfo -h -o %t 2>/dev/null | grep -q idle && break
  sleep 0.3
done
sinfo -h -o %t | grep -q idle || { tail -5 "$slurm"/log/*; exit 1; }

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
