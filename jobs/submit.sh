#!/usr/bin/env bash
# Submits a training from a clone to a running cluster, and follows it to its end.
#
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 jobs/submit.sh --arch resnet --task cifar10 \
#       --data-dir /data --run-dir /runs/resnet
#
# The flags are those of `python -m rayff.train`. The clone's files travel with the job (not what
# .gitignore names, and 100 MiB at the most), the data does not: --data-dir and --run-dir are paths
# of the head node, where the driver runs. The exit code is 0 only if the training ended well; the
# job goes on when this script is interrupted, and `ray job stop` ends it with a checkpoint, from
# which the same command with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${RAY_API_SERVER_ADDRESS:=http://127.0.0.1:8265}" # where the dashboard listens
export RAY_API_SERVER_ADDRESS

case " $* " in
*[[:space:]]--run[-_]dir[[:space:]=]/*) ;;
*) # any other folder is in the job's copy of the clone, which Ray deletes some time after the job
  echo "error: --run-dir: give a full path of the head node, such as --run-dir /runs/first" >&2
  exit 2
  ;;
esac

# Seconds from SIGTERM to SIGKILL: time for the chunks in flight and a last checkpoint.
runtime_env='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'

# ray submits from a clone, or anywhere the package is installed
ray="$(command -v ray || echo .venv/bin/ray)"
exec "$ray" job submit --working-dir . --runtime-env-json "$runtime_env" -- \
  python -m rayff.train "$@"
