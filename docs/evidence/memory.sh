#!/usr/bin/env bash
# What small models really take on one GPU, beside the range that mgpu-doctor gives beforehand.
# Needs mgpu-doctor, torch, transformers and accelerate, no network; takes about three minutes.
# Usage: bash docs/evidence/memory.sh > docs/evidence/memory.txt 2>&1
set -u
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
"${PYTHON:-python3}" "$here/memory_models.py" "$work"
status=$?
printf '[exit %s]\n' "$status"
exit "$status"
