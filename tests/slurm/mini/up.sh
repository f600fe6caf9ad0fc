#!/usr/bin/env bash
# Start a two-node Slurm cluster on this host.
#
#   up.sh STATE_DIR [--hosts]
#
# STATE_DIR gets everything: configuration, keys, logs, pids. --hosts adds the
# node names n1 and n2 to /etc/hosts (down.sh takes them out again), so that a
# script may use `scontrol show hostnames | head -1` as its MASTER_ADDR.
#
# Environment: SLURM_MINI_PORT (first of three ports, 16817), SLURM_MINI_CPUS
# (per node, 4), SLURM_MINI_MEMORY (MB per node, 4000), SLURM_MINI_GPUS (fake
# GPUs per node, 2), SLURM_MINI_REQUEUE_DELAY (seconds a requeued job waits,
# 10), SLURM_MINI_TIMEOUT (seconds to wait for the daemons, 60).
set -euo pipefail

usage() { echo "usage: up.sh STATE_DIR [--hosts]" >&2; exit 2; }
die() { echo "slurm-mini: $*" >&2; exit 1; }

[[ $# -ge 1 && $1 != -* ]] || usage
with_hosts=no
[[ ${2:-} == --hosts ]] && with_hosts=yes
[[ $# -le 2 && ( $# -eq 1 || $with_hosts == yes ) ]] || usage

PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
state=$(cd "$1" && pwd)
[[ $state != *[[:space:]]* ]] || die "the state directory must have no blanks: $state"
# Unix sockets have at most 107 characters, and slurmd adds a job's id and step to its directory.
((${#state} <= 70)) || die "the state directory must have at most 70 characters, not ${#state}: $state"
if compgen -G "$state/run/*.pid" >/dev/null; then
  die "a cluster is recorded in $state; run down.sh first"
fi
for program in munged slurmctld slurmd scontrol; do
  command -v "$program" >/dev/null || die "$program not found; run install.sh"
done

port=${SLURM_MINI_PORT:-16817}
gpus=${SLURM_MINI_GPUS:-2}
timeout=${SLURM_MINI_TIMEOUT:-60}
((gpus >= 1)) || die "SLURM_MINI_GPUS must be at least 1, got $gpus"
[[ $with_hosts == no || -w /etc/hosts ]] || die "--hosts needs a writable /etc/hosts"

# --- directories, key, fake GPUs, configuration ---------------------------
chmod 755 "$state"
mkdir -p "$state"/{etc,run,log,ctld,dev,spool/n1,spool/n2}
# slurmd wants device files; with plain files jobs get no CUDA_VISIBLE_DEVICES.
for ((i = 0; i < gpus; i++)); do ln -sfn /dev/null "$state/dev/gpu$i"; done
if [[ ! -s $state/etc/munge.key ]]; then
  (umask 077 && head -c 1024 /dev/urandom >"$state/etc/munge.key")
fi
for name in slurm gres; do
  sed -e "s|@STATE@|$state|g" \
      -e "s|@HOST@|$(hostname -s)|g" \
      -e "s|@USER@|$(id -un)|g" \
      -e "s|@CPUS@|${SLURM_MINI_CPUS:-4}|g" \
      -e "s|@MEMORY@|${SLURM_MINI_MEMORY:-4000}|g" \
      -e "s|@FIRST_JOB@|$((port * 20 % 9000 + 1))|g" \
      -e "s|@GPUS@|$gpus|g" \
      -e "s|@LAST_GPU@|$((gpus - 1))|g" \
      -e "s|@REQUEUE_DELAY@|${SLURM_MINI_REQUEUE_DELAY:-10}|g" \
      -e "s|@PORT_CTLD@|$port|g" \
      -e "s|@PORT_N1@|$((port + 1))|g" \
      -e "s|@PORT_N2@|$((port + 2))|g" \
      "$here/templates/$name.conf.in" >"$state/etc/$name.conf"
done
# shellcheck disable=SC2016  # $PATH is for the reader of env.sh
printf 'export SLURM_CONF=%q\nexport PATH=$PATH:/usr/sbin\n' \
  "$state/etc/slurm.conf" >"$state/env.sh"
# shellcheck source=/dev/null
. "$state/env.sh"

# --- daemons --------------------------------------------------------------
# start NAME COMMAND...: run in the foreground mode of the daemon, in a process
# group of its own, and record the pid under run/NAME.pid.
start() {
  local name=$1
  shift
  setsid "$@" </dev/null >>"$state/log/$name.out" 2>&1 &
  echo $! >"$state/run/$name.pid"
}

# wait_for WHAT COMMAND...: until the command succeeds or the time is over.
wait_for() {
  local what=$1 end=$((SECONDS + timeout))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then
      tail -n 20 "$state"/log/* >&2 || true
      "$here/down.sh" "$state" >&2 || true
      die "no $what after $timeout s"
    fi
    sleep 0.2
  done
}

two_idle_nodes() { [[ $(sinfo -h -N -t idle -o %N | sort -u | wc -l) -eq 2 ]]; }

# --force: the directories above the state directory may be group-writable.
start munged munged --foreground --force --num-threads=2 \
  --key-file="$state/etc/munge.key" --socket="$state/run/munge.socket" \
  --pid-file="$state/run/munged.munge-pid" --log-file="$state/log/munged.log" \
  --seed-file="$state/run/munged.seed"
wait_for "munge socket" test -S "$state/run/munge.socket"

# Call the programs by these names, not as slurmctld-wlm and slurmd-wlm: under
# the other names the GRES plug-in is not loaded.
start slurmctld slurmctld -D -f "$SLURM_CONF"
wait_for "answer of slurmctld" scontrol ping
for node in n1 n2; do
  start "slurmd-$node" slurmd -D -N "$node" -f "$SLURM_CONF"
done
wait_for "two idle nodes" two_idle_nodes

if [[ $with_hosts == yes ]]; then
  flock /etc/hosts bash -c 'echo "$1" >>/etc/hosts' - "127.0.0.1 n1 n2 # slurm-mini $state"
fi

sinfo
echo "slurm-mini: up. Use it with:  . $state/env.sh"
