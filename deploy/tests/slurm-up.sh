# A Slurm of this machine alone, for the script that sources this; it and $scratch are gone at exit.
#
# Needs root (munge, slurmctld and slurmd run as their own users), python3 and Debian's packages slurmctld
# slurmd slurm-client munge; calls the script's `skip` where one is missing.
for program in slurmctld slurmd sbatch munged; do
  command -v $program >/dev/null || skip "$program is not installed"
done
[ "$(id -u)" = 0 ] || skip "not root"

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
