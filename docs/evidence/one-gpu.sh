#!/usr/bin/env bash
# What mgpu-doctor says on a machine with one real GPU, and what really happens there. Needs torch and mgpu-doctor.
# Usage: bash docs/evidence/one-gpu.sh > docs/evidence/one-gpu.txt 2>&1
set -u
work=$(mktemp -d)
cd "$work" || exit 1
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
show() { printf '\n$ %s\n' "$*"; "$@"; printf '[exit %s]\n' "$?"; }
title() { printf '\n=== %s\n' "$*"; }

cat > ranks.py <<'PY'
import os
import torch

local = int(os.environ.get("LOCAL_RANK", "0"))
count = torch.cuda.device_count()
index = local if local < count else None
uuid = torch.cuda.get_device_properties(index).uuid if index is not None else "no such device"
print(f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: CUDA_VISIBLE_DEVICES="
      f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}, {count} visible, cuda:{local} is {uuid}", flush=True)
PY

title "machine"
uname -sr
nvidia-smi --query-gpu=index,name,uuid,driver_version,memory.total,compute_cap --format=csv
python3 -c "import sys, torch; print('python', sys.version.split()[0], 'torch', torch.__version__, 'NCCL', torch.cuda.nccl.version())"
show mgpu-doctor --version

title "no command: the machine"
show mgpu-doctor check

title "a sound command"
show mgpu-doctor explain "torchrun --standalone --nproc-per-node 1 ranks.py"
show torchrun --standalone --nproc-per-node 1 ranks.py

title "two ranks, one GPU: what is promised, and what happens"
show mgpu-doctor check --cmd "torchrun --standalone --nproc-per-node 2 ranks.py"
show torchrun --standalone --nproc-per-node 2 ranks.py

title "an index that the machine does not have"
show mgpu-doctor check --cmd "CUDA_VISIBLE_DEVICES=1,0 python3 ranks.py"
CUDA_VISIBLE_DEVICES=1,0 show python3 ranks.py
show mgpu-doctor check --cmd "CUDA_VISIBLE_DEVICES=0,1 python3 ranks.py"
CUDA_VISIBLE_DEVICES=0,1 show python3 ranks.py

title "a busy port"
python3 -c "
import socket, time
s = socket.socket(); s.bind(('127.0.0.1', 29511)); s.listen(); open('bound', 'w').close(); time.sleep(600)" &
until [ -e bound ]; do :; done
show mgpu-doctor check --cmd "torchrun --nproc-per-node 1 --master-port 29511 ranks.py"
show timeout 60 torchrun --nproc-per-node 1 --master-port 29511 ranks.py 2>&1 | grep -E "rank 0|EADDRINUSE|exit" | tail -3

title "a GPU that another process uses"
python3 -c "
import torch, time
x = torch.empty(20 * 2**30, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize(); open('held', 'w').close(); time.sleep(600)" &
until [ -e held ]; do :; done
show mgpu-doctor check --cmd "CUDA_VISIBLE_DEVICES=0 torchrun --standalone --nproc-per-node 1 ranks.py"

title "a variable that stays in the shell"
printf 'CUDA_VISIBLE_DEVICES=7\ntorchrun --standalone --nproc-per-node 1 ranks.py\n' > run.sh
show mgpu-doctor check run.sh
show bash run.sh

title "the list of devices that CUDA reads: ours against the driver's"
printf '%s\n' "(numbers of devices; the driver's is what cudaGetDeviceCount() answers in a fresh process)"
for list in "0" "0,1" "1,0" "0,0" "-1" "" "0-3" " 0" "[0]" "cuda:0" "GPU-" "0,GPU-0"; do
  ours=$(mgpu-doctor explain --format json "CUDA_VISIBLE_DEVICES='$list' python3 ranks.py" | python3 -c "
import json, sys
found = json.load(sys.stdin)['commands'][0]
print(len(found['devices']['value'] or []))")
  real=$(CUDA_VISIBLE_DEVICES="$list" python3 -c "import torch; print(torch._C._cuda_getDeviceCount())" 2>/dev/null)
  printf '%-12s ours %s, the driver %s\n' "'$list'" "$ours" "$real"
done
