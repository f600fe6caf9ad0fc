#!/usr/bin/env bash
# Stop the cluster that up.sh started.
#
#   down.sh STATE_DIR
#
# Cancels the jobs, then ends the recorded processes and only those: a pid is
# signalled when its command line names STATE_DIR. Exits 1 when one survives.
# Logs and state stay in STATE_DIR; remove the directory to forget them.
set -uo pipefail

[[ $# -eq 1 ]] || { echo "usage: down.sh STATE_DIR" >&2; exit 2; }
state=$(cd "$1" && pwd) || exit 2
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$state/etc/slurm.conf

is_ours() { # is_ours PID
  [[ -r /proc/$1/cmdline ]] &&
    tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "$state/"
}

gone_within() { # gone_within SECONDS PID
  local end=$((SECONDS + $1))
  while is_ours "$2"; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# Jobs first: their step daemons outlive slurmd.
if [[ -f $state/run/slurmctld.pid ]] && timeout 5 scontrol ping >/dev/null 2>&1; then
  timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1
  end=$((SECONDS + 30))
  while [[ -n $(timeout 5 squeue -h 2>/dev/null) ]] && ((SECONDS < end)); do
    sleep 0.5
  done
fi

status=0
for name in slurmd-n1 slurmd-n2 slurmctld munged; do
  file=$state/run/$name.pid
  [[ -f $file ]] || continue
  pid=$(<"$file")
  if is_ours "$pid"; then
    kill -TERM "$pid" 2>/dev/null
    if ! gone_within 15 "$pid"; then
      kill -KILL "$pid" 2>/dev/null
      gone_within 5 "$pid" || { echo "slurm-mini: $name ($pid) is still there" >&2; status=1; continue; }
    fi
  fi
  rm -f "$file"
done

# Step daemons name no directory on their command line; they leave a socket in
# the spool directory for as long as they run.
left=$(find "$state"/spool -type s 2>/dev/null)
[[ -z $left ]] || { echo "slurm-mini: steps not ended: $left" >&2; status=1; }

line="127.0.0.1 n1 n2 # slurm-mini $state"
if grep -qxF -- "$line" /etc/hosts 2>/dev/null; then
  # Written in place: /etc/hosts may be a mount that cannot be renamed over.
  # Locked: another cluster may be starting or stopping.
  # shellcheck disable=SC2016
  flock /etc/hosts bash -c 'kept=$(grep -vxF -- "$1" /etc/hosts); printf "%s\n" "$kept" >/etc/hosts' - "$line"
fi

((status == 0)) && echo "slurm-mini: down"
exit "$status"
