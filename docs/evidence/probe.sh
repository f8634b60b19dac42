#!/usr/bin/env bash
# The probe on a machine with one real GPU: one rank, two ranks on one card, a rank that dies, a rank that hangs.
# Needs a Python with torch on CUDA that also runs mgpu-doctor.
# Usage: bash docs/evidence/probe.sh > docs/evidence/probe.txt 2>&1
set -u
work=$(mktemp -d)
cd "$work" || exit 1
trap 'rm -rf "$work"' EXIT
export COLUMNS=100
show() { printf '\n$ %s\n' "$*"; "$@"; printf '[exit %s]\n' "$?"; }
title() { printf '\n=== %s\n' "$*"; }
printf 'import torch\nprint(torch.cuda.device_count())\n' > train.py

title "machine"
nvidia-smi --query-gpu=index,name,driver_version --format=csv
python3 -c "import sys, torch; print('python', sys.version.split()[0], 'torch', torch.__version__, 'NCCL', torch.cuda.nccl.version())"
before=$(ls /dev/shm)

title "one rank on one GPU, as asked"
show mgpu-doctor probe --format rich

title "two ranks on one GPU: it looks like two and is one"
show mgpu-doctor probe --format rich --nproc 2 --save two.json

title "what the launcher of a command really starts"
show mgpu-doctor probe --format rich -- torchrun --standalone --nproc-per-node 2 train.py
show mgpu-doctor probe -- accelerate launch --num_processes 1 train.py

title "four promised, one started: the configuration says so"
printf "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nmachine_rank: 0\nnum_machines: 1\nuse_cpu: false\n" > acc.yaml
show mgpu-doctor probe -- accelerate launch --config_file acc.yaml --num_processes 4 train.py

title "a rank is killed while it works"
MGPU_DOCTOR_PROBE_FAULT=kill:device:0 show mgpu-doctor probe
MGPU_DOCTOR_PROBE_FAULT=kill:together:1 show mgpu-doctor probe --nproc 2

title "a rank hangs: named within the deadline, with the place it stands at"
MGPU_DOCTOR_PROBE_FAULT=hang:solo:0 show mgpu-doctor probe --deadline 30
MGPU_DOCTOR_PROBE_FAULT=hang:collective:1 show mgpu-doctor probe --cpu --nproc 2 --deadline 30

title "the launch alone, on the CPU"
show mgpu-doctor probe --cpu --nproc 4

title "nothing is left"
ps -eo pid,stat,args | grep -E "worker.py|torch.distributed" | grep -v grep
[ "$before" = "$(ls /dev/shm)" ] && echo "no process, no shared memory"

title "how long a verdict takes, against importing torch"
python3 -c "
import subprocess, sys, time
def seconds(*command):
    start = time.perf_counter(); subprocess.run(command, capture_output=True); return time.perf_counter() - start
torch = min(seconds(sys.executable, '-c', 'import torch') for _ in range(3))
for count in (1, 2, 4):
    took = min(seconds('mgpu-doctor', 'probe', '--cpu', '--nproc', str(count)) for _ in range(2))
    print(f'{count} ranks: {took:.1f} s; import torch {torch:.1f} s; 3 s and twice the import: {3 + 2 * torch:.1f} s')"
cp two.json /tmp/probe-two.json
