"""A worker for tests of the doctor's side: it says that it is on a GPU, and answers as workers on real ones did.

What each rank is to say lies in ``STAND_IN_DEVICES``: by rank the index of its device among all, and all devices'
UUIDs. Two ranks on one device take 3.6 ms together for what takes 1.43 ms alone (as measured on one H100). A group
that is asked to use NCCL with two ranks on one device fails as NCCL does.
"""

from __future__ import annotations

import json
import os
import socket
import sys

folder = os.path.dirname(sys.argv[1])
with open(os.path.join(folder, "channel.json")) as file:
    settings = json.load(file)
plan = json.loads(os.environ["STAND_IN_DEVICES"])
rank = int(os.environ["RANK"])
index, uuids = plan["index"][rank], plan["uuids"]
world = int(os.environ["WORLD_SIZE"])
shared = plan["index"].count(index) > 1
line = socket.socket(socket.AF_UNIX)
line.connect(settings["address"])


def send(**message: object) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
told = {name: os.environ[name] for name in names}
send(kind="hello", token=settings["token"], pid=os.getpid(), ppid=os.getppid(), host="h", python="3.11.0", told=told)
devices = [
    {"index": at, "uuid": uuid, "name": "NVIDIA H200", "bus": f"0000:{uuid[4]}B:00.0"} for at, uuid in enumerate(uuids)
]
send(kind="seen", devices=devices, driver_error=None, index=index, wrapped=rank != index)
peers = [[a, b, (a, b) != (0, 2)] for a in range(len(uuids)) for b in range(a + 1, len(uuids))]
ready = {"torch": "2.11.0", "cuda": "13.0", "nccl": "2.28.9", "cuda_ok": True, "has_nccl": True, "name": "NVIDIA H200"}
send(kind="done", stage="identity", **ready, index=index, wrapped=rank != index, count=len(uuids), peers=peers)
to, way = (rank + 1) % 3, "P2P/CUMEM" if rank else "SHM/direct"
with open(os.path.join(folder, f"nccl.{os.getpid()}"), "w") as log:
    log.write(f"h:1:1 [0] NCCL INFO Channel 00/0 : {rank}[{index}] -> {to}[0] via {way}\n")
duplicate = "DistBackendError: NCCL error Last error: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60"
for text in line.makefile():
    order = json.loads(text)
    what = order["do"]
    if what == "end":
        send(kind="bye")
        sys.exit(0)
    if what == "group" and order["backend"] == "nccl" and shared:
        send(kind="failed", stage=what, error=duplicate)
        continue
    answers = {
        "solo": {"ms": 1.43},
        "together": {"ms": 3.6 if shared else 1.43},
        "collective": {"measured": world * (world + 1) / 2, "seconds": 0.001, "bytes": 1 << 30},
        "link": {"seconds": 0.5, "bytes": 1 << 30},
    }
    send(kind="done", stage=what, **answers.get(what, {}))
