#!/usr/bin/env bash
# A training over several nodes of a Slurm cluster: one Ray node on each, a stage on each GPU.
#
#   sbatch --nodes=4 --gpus-per-node=1 \
#       jobs/slurm.sh --arch resnet --task cifar10 --data-dir /shared/data --run-dir runs/resnet
#
# Without --gpus-per-node it trains on CPUs. The flags after the script are those of
# `python -m rayff.train`. Wants a clone with its .venv (make train) on a file system that all nodes
# share. `scancel --batch --signal=TERM JOB` ends it with a checkpoint, as the time limit does;
# submitted again with --resume, the run goes on.
#SBATCH --job-name=rayff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --no-kill
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
bin=.venv/bin
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}" # where this script runs

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" "${@:2}"; }

# The address from which the last node was reached: no name has to resolve.
address="$(on "${nodes[-1]}" printenv SLURM_LAUNCH_NODE_IPADDR)"
# Jobs may share a node: ports are free ones, temporary folders are the job's own.
read -r port client_port < <("$bin/python" jobs/slurm_nodes.py ports 2)
client=()
"$bin/python" -c 'import grpc' 2>/dev/null && client=(--ray-client-server-port="$client_port")

export RAY_ADDRESS="$address:$port"
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID" # other users of the nodes have none
(umask 077 && "$bin/python" -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")

# shellcheck disable=SC2016 # expands on the node
ray_node='
folder="$(mktemp -d /tmp/rayff-slurm-XXXXXX)"
trap "stopped=1; kill -KILL \$ray" TERM
for attempt in 1 2 3; do
  code=0
  "$0" start --block --temp-dir="$folder/ray$attempt" --node-name="$SLURMD_NODENAME" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 "$@" \
    2> >(tee "$folder/errors" >&2) &
  ray=$!
  wait "$ray" || code=$?
  [[ $code != 0 && -z ${stopped:-} ]] || break
  sleep 1 # for tee
  # Ray gives itself 30 s, which a busy node or file system may exceed.
  grep -q "timed out during startup" "$folder/errors" || break
  echo "Ray did not start on $SLURMD_NODENAME within its 30 s (attempt $attempt of 3)" >&2
done
until rm -rf "$folder"; do sleep 0.2; done
exit "$code"'
steps=()
start() {
  on "$1" bash -c "$ray_node" "$bin/ray" "${@:2}" &
  steps+=($!)
}
await() { # until Ray has these nodes; one that ends before is an error
  "$bin/python" jobs/slurm_nodes.py wait "$@" &
  waiter=$!
  wait -n "$waiter" "${steps[@]}" || {
    ! kill "$waiter" 2>/dev/null || echo "error: Ray has ended on a node of the job; see above" >&2
    exit 1
  }
  waiter=
}

training=
waiter=
finish() {
  rm -f "$RAY_AUTH_TOKEN_PATH"
  [[ -z $waiter ]] || kill "$waiter" 2>/dev/null || true
  scancel --signal=TERM "$SLURM_JOB_ID" # its steps, and not this script
  wait
}
trap finish EXIT
trap 'kill -TERM $training 2>/dev/null || exit 143' TERM

start "$head" --head --port="$port" --node-ip-address="$address" --include-dashboard=false \
  "${client[@]}"
await "$head"
for node in "${nodes[@]:1}"; do start "$node" --address="$RAY_ADDRESS"; done
await "${nodes[@]}"

"$bin/python" -m rayff.train "$@" & # SIGTERM reaches it with a checkpoint
training=$!
wait "$training" || wait "$training"
