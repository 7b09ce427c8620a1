#!/usr/bin/env bash
# Run train.py on every host of a TPU VM slice. See docs/launch/tpu_vm.md.
#   launch/tpu_vm.sh NAME ZONE --config=configs/scale/dense8b.py --workdir=/mnt/shared/runs/dense8b
set -euo pipefail
name=$1 zone=$2
shift 2
flags=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd isoflop && uv run --extra tpu train.py --distributed=on$flags"
