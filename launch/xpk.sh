#!/usr/bin/env bash
# Run train.py as a workload of xpk on GKE. See docs/launch/gke.md.
#   launch/xpk.sh CLUSTER v5p-512 IMAGE WORKLOAD --config=configs/scale/dense8b.py --workdir=/mnt/shared/runs/dense8b
set -euo pipefail
cluster=$1 type=$2 image=$3 workload=$4
shift 4
flags=$(printf ' %q' "$@")
xpk workload create --cluster="$cluster" --tpu-type="$type" --workload="$workload" \
  --docker-image="$image" --max-restarts=10 \
  --command="cd /isoflop && uv run --extra tpu train.py --distributed=on$flags"
