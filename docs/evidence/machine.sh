#!/usr/bin/env bash
# The machine's faults, provoked one by one on a real one, and what mgpu-doctor says of each.
# Needs root (to mount a small /dev/shm), one NVIDIA GPU, and a Python with torch that also runs mgpu-doctor.
# Usage: bash docs/evidence/machine.sh > docs/evidence/machine.txt 2>&1
# CPU_TORCH names a directory with the metadata and torch/version.py of a CPU wheel of torch (optional).
set -u
work=$(mktemp -d)
cd "$work" || exit 1
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
export COLUMNS=100
show() { printf '\n$ %s\n' "$*"; "$@"; printf '[exit %s]\n' "$?"; }
title() { printf '\n=== %s\n' "$*"; }
# The findings alone: code, slug and message.
found() { printf '\n$ %s\n' "$*"; "$@" --format plain | grep -E '^[^ ].*(error|warning|advice) MGD|^nothing found|^[0-9]+ (error|warning|piece)'; }

cat > train.py <<'PY'
import os
import torch
import torch.distributed as dist

torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
dist.init_process_group("nccl")
print(torch.ones(1, device="cuda"))
PY

title "machine"
uname -sr
nvidia-smi --query-gpu=index,name,driver_version,memory.total,compute_cap,pci.bus_id --format=csv
python3 -c "import sys, torch; print('python', sys.version.split()[0], 'torch', torch.__version__)"
mgpu-doctor --version

title "the healthy machine"
show mgpu-doctor check --format rich
found mgpu-doctor check -- torchrun --standalone --nproc-per-node 1 train.py

title "this machine as a file, anonymised, judged as this machine is"
mgpu-doctor facts --anonymise --output facts.json
show mgpu-doctor check --facts facts.json
python3 - <<'PY'
import json
facts = json.load(open("facts.json"))
print({key: facts.get(key) for key in ("driver", "driver_module", "driver_cuda", "torch_cuda", "torch_cxx11abi",
                                       "torch_archs", "torch_nccl", "nvcc", "nvml_error", "nvswitch", "iommu")})
PY

title "torch as its files tell, and as it says itself"
python3 -c "import torch; print({'torch_cuda': torch.version.cuda, 'torch_archs': torch.cuda.get_arch_list(), 'torch_nccl': torch.cuda.nccl.version(), 'torch_cxx11abi': torch._C._GLIBCXX_USE_CXX11_ABI})"

title "fault: a busy port"
python3 -c "
import socket, time
s = socket.socket(); s.bind(('127.0.0.1', 29511)); s.listen(); open('bound', 'w').close(); time.sleep(600)" &
until [ -e bound ]; do :; done
show mgpu-doctor check --cmd "torchrun --nproc-per-node 1 --master-port 29511 train.py"

title "fault: a GPU that another process uses"
python3 -c "
import torch, time
x = torch.empty(20 * 2**30, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize(); open('held', 'w').close(); time.sleep(600)" &
holder=$!
until [ -e held ]; do :; done
show mgpu-doctor check --format rich --cmd "CUDA_VISIBLE_DEVICES=0 torchrun --standalone --nproc-per-node 1 train.py"
kill "$holder"; wait "$holder" 2>/dev/null

title "fault: the environment's list of devices names one that is not there; is empty; is misspelt"
CUDA_VISIBLE_DEVICES=5 found mgpu-doctor check
CUDA_VISIBLE_DEVICES='' found mgpu-doctor check
CUDA_VISABLE_DEVICES=0 found mgpu-doctor check
RANK=3 WORLD_SIZE=8 found mgpu-doctor check -- torchrun --standalone --nproc-per-node 1 train.py

title "fault: more ranks than GPUs"
found mgpu-doctor check -- torchrun --standalone --nproc-per-node 4 train.py

title "fault: a build of torch without CUDA"
python3 -m venv --without-pip cpu
if [ -n "${CPU_TORCH:-}" ]; then
  cp -r "$CPU_TORCH"/. cpu/lib/python3*/site-packages/
  found mgpu-doctor check --python cpu/bin/python
fi

title "fault: a flash-attn wheel for another torch and another ABI"
python3 -m venv --without-pip wheel
site=$(echo wheel/lib/python3*/site-packages)
[ -n "${CPU_TORCH:-}" ] && cp -r "$CPU_TORCH"/. "$site"/
mkdir -p "$site/flash_attn-2.7.4.post1+cu12torch2.4cxx11abiFALSE.dist-info"
printf 'Metadata-Version: 2.1\nName: flash_attn\nVersion: 2.7.4.post1+cu12torch2.4cxx11abiFALSE\n' \
  > "$site/flash_attn-2.7.4.post1+cu12torch2.4cxx11abiFALSE.dist-info/METADATA"
printf 'Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n' \
  > "$site/flash_attn-2.7.4.post1+cu12torch2.4cxx11abiFALSE.dist-info/WHEEL"
found mgpu-doctor check --python wheel/bin/python

title "fault: a variable that stays in the shell"
printf 'CUDA_VISIBLE_DEVICES=7\ntorchrun --standalone --nproc-per-node 1 train.py\n' > run.sh
found mgpu-doctor check run.sh

title "fault: a launcher of the user's site that belongs to another interpreter"
mkdir -p home/.local/bin
printf '#!/usr/bin/python3\nfrom torch.distributed.run import main\nmain()\n' > home/.local/bin/torchrun
chmod +x home/.local/bin/torchrun
PATH=$PWD/home/.local/bin:$PATH found mgpu-doctor check -- torchrun --standalone --nproc-per-node 1 train.py

title "fault: 16 MB of shared memory"
mount -t tmpfs -o size=16m tmpfs /dev/shm &&
  found mgpu-doctor check -- torchrun --standalone --nproc-per-node 2 train.py
umount /dev/shm

title "fault: few open files"
(ulimit -n 64; found mgpu-doctor check -- torchrun --standalone --nproc-per-node 8 train.py)

title "fault: settings left over from debugging"
NCCL_P2P_DISABLE=1 CUDA_LAUNCH_BLOCKING=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:true found mgpu-doctor check

title "fault: no device file in this mount namespace"
unshare -m bash -c 'mount -t tmpfs tmpfs /mnt && touch /mnt/none && mount --bind /mnt/none /dev/nvidiactl 2>/dev/null; "$@"' _ \
  mgpu-doctor check --format plain | grep -E "MGD711|^nothing|unknown"

title "how long it takes"
for _ in 1 2 3; do
  python3 -c "
import subprocess, time
start = time.perf_counter(); subprocess.run(['mgpu-doctor', 'check'], capture_output=True)
print(f'mgpu-doctor check: {time.perf_counter() - start:.2f} s')"
done
