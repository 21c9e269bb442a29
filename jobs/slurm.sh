#!/usr/bin/env bash
# A training over several nodes of a Slurm cluster: one Ray node on each, a stage on each GPU.
#
#   sbatch jobs/slurm.sh --arch resnet --task cifar10 --data-dir /shared/data --run-dir runs/resnet
#
# The flags are those of `python -m rayff.train`. Wants a clone with its .venv (make train) on a
# file system that all nodes share. Submitted again with --resume, the run goes on.
#SBATCH --job-name=rayff
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
bin=.venv/bin

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
export RAY_ADDRESS="$head:$port"
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID" # other users of the nodes have none
(umask 077 && "$bin/python" -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" "${@:2}"; }

on "$head" "$bin/ray" start --head --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --include-dashboard=false --block &
until "$bin/ray" status >/dev/null 2>&1; do sleep 1; done
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2); do
  on "$node" "$bin/ray" start --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
done

"$bin/python" -m rayff.train "$@" & # SIGTERM, two minutes before the end, reaches it with a checkpoint
training=$!
trap 'kill -TERM "$training"' TERM
wait "$training" || wait "$training"
