"""The program pins one card, so that every rank of a multi-process run touches it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import SET_UP_BY_LIBRARY, VISIBLE, on_cpu, program_of, ranks_here, set_by_program
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Signature,
    report,
)

_HEAD = "import os\nimport torch\nimport torch.distributed as dist\n\ndist.init_process_group('nccl')\n"
_WRAP = "model = torch.nn.parallel.DistributedDataParallel(build().cuda())\n"
_SET = "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))\n"
_PINNED = _HEAD + "device = torch.device('cuda:0')\nmodel = torch.nn.Linear(8, 8).to(device)\n"
_LOADS = _HEAD + "state = torch.load('last.pt')\n" + _WRAP
_BY_RANK = _HEAD + "rank = int(os.environ['LOCAL_RANK'])\nmodel = torch.nn.Linear(8, 8).to(f'cuda:{rank}')\n"

RULE = Rule(
    code="MGD212",
    slug="device-hard-coded",
    title="The program pins a card in a multi-process run",
    severity=Severity.WARNING,
    summary="Every rank uses cuda:0 (or another fixed card): nothing selects the rank's own device.",
    why=(
        "A launcher tells a rank its number through LOCAL_RANK; it does not choose the device. Without "
        "`torch.cuda.set_device(local_rank)` `.cuda()` means `cuda:0` in every rank, and `torch.load` puts tensors "
        "back on the card that they were saved from. All ranks then crowd on one card: out of memory there, "
        "`Duplicate GPU detected` from NCCL, the other cards idle."
    ),
    bad=(
        Example("a pinned device", "torchrun --nproc_per_node 4 fit.py", files={"fit.py": _PINNED}),
        Example("no set_device, no map_location", "torchrun --nproc_per_node 4 fit.py", files={"fit.py": _LOADS}),
        Example("no set_device", "torchrun --nproc_per_node 2 fit.py", files={"fit.py": _HEAD + _WRAP}, facts=None),
        Example(
            "the current card by name",
            "torchrun --nproc_per_node 2 fit.py",
            files={
                "fit.py": _HEAD
                + "model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8).to('cuda'))\n"
            },
            facts=None,
        ),
        Example(
            "the same number in every rank",
            "torchrun --nproc_per_node 2 fit.py",
            files={"fit.py": _HEAD + "torch.cuda.set_device(0)\n" + _WRAP},
        ),
        Example(
            "every rank loads to one card",
            "torchrun --nproc_per_node 2 fit.py",
            files={"fit.py": _HEAD + _SET + "state = torch.load('last.pt', map_location='cuda:0')\n" + _WRAP},
        ),
        Example(
            "pinned beside a library",
            "accelerate launch --multi_gpu --num_processes 2 fit.py",
            files={
                "fit.py": "from accelerate import Accelerator\n\nmodel = Accelerator().prepare(build().to('cuda:0'))\n"
            },
        ),
    ),
    good=(
        Example("set_device", "torchrun --nproc_per_node 4 fit.py", files={"fit.py": _HEAD + _SET + _WRAP}),
        Example(
            "set_device, then the current card by name",
            "torchrun --nproc_per_node 4 fit.py",
            files={"fit.py": _HEAD + _SET + "model = torch.nn.Linear(8, 8).to('cuda')\n"},
        ),
        Example("one process", "python fit.py", files={"fit.py": _PINNED}),
        Example("one rank", "torchrun --nproc_per_node 1 fit.py", files={"fit.py": _PINNED}),
        Example("the rank chooses", "torchrun --nproc_per_node 4 fit.py", files={"fit.py": _BY_RANK}),
        Example(
            "a library chooses",
            "accelerate launch --multi_gpu --num_processes 2 fit.py",
            files={"fit.py": "from accelerate import Accelerator\n\nmodel = Accelerator().prepare(build().cuda())\n"},
        ),
        Example(
            "loading on the CPU",
            "torchrun --nproc_per_node 4 fit.py",
            files={"fit.py": _HEAD + _SET + "state = torch.load('last.pt', map_location='cpu')\n" + _WRAP},
        ),
    ),
    sources=(
        Reference(
            "torch 2.6.0, distributed/run.py", "sets LOCAL_RANK and leaves the choice of the device to the program"
        ),
        Reference(
            "torch 2.6.0, serialization.py load()",
            "without map_location storages go back to the device they were saved from",
        ),
        Reference("torch 2.11.0+cu130 with NCCL 2.28.9", "two ranks on one GPU: Duplicate GPU detected", ran=True),
    ),
    fix="call torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before CUDA is used, and load with map_location",
    signatures=(
        Signature(
            r"Expected all tensors to be on the same device, but found at least two devices, cuda:\d+ and cuda:\d+",
            "torch 2.13.0, ATen's check of a kernel's arguments",
            "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:1 and "
            "cuda:7!",
            weak=True,
        ),
        Signature(
            r"Attempting to deserialize object on CUDA device \d+ but torch\.cuda\.device_count\(\) is \d+",
            "torch 1.13.1 to 2.3.1, serialization.py validate_cuda_device()",
            "RuntimeError: Attempting to deserialize object on CUDA device 4 but torch.cuda.device_count() is 1. "
            "Please use torch.load with map_location to map your storages to an existing device.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Programs that run in several ranks and use one card in all of them."""
    for launch in case.launches:
        ranks, program = ranks_here(launch), program_of(launch)
        if ranks is None or ranks < 2 or program is None or on_cpu(case, launch) or _one_device_per_task(launch):
            continue
        if program.all("spawns-ranks") or set_by_program(program, VISIBLE) is not None:
            continue
        found = _culprit(program)
        if found is not None:
            seen, message = found
            yield report(
                RULE,
                message.format(ranks=ranks),
                program.locate(seen),
                evidence=(f"{ranks} processes run this program on one machine",),
                fix=Fix(RULE.fix or ""),
            )


def _one_device_per_task(launch: Launch) -> bool:
    """Whether the scheduler gives each task a device list of its own, in which cuda:0 is right."""
    srun = launch.layer("srun")
    return srun is not None and bool(srun.option("gpus_per_task") or srun.option("gpu_bind"))


def _culprit(program: Program) -> tuple[Seen, str] | None:
    fixed = next((seen for seen in program.all("set-device") if seen.detail.isdigit()), None)
    if fixed is not None:
        return fixed, f"set_device({fixed.detail}) puts all {{ranks}} ranks on cuda:{fixed.detail}."
    loads = next((seen for seen in program.all("cuda-device") if _is_map_location(program, seen)), None)
    if loads is not None:
        return loads, f"map_location puts what all {{ranks}} ranks load on {loads.detail}."
    if _selects(program):
        return None
    maps = program.all("device-map")
    pinned = next((s for s in program.all("cuda-device") if not any(m.span.contains(s.span) for m in maps)), None)
    if pinned is not None:
        return pinned, f"{pinned.detail} is the same card in all {{ranks}} ranks, and nothing selects a rank's own."
    if program.all(*SET_UP_BY_LIBRARY):
        return None
    moved = [seen for seen in program.all("cuda-call") if _bare(program, seen)]
    if not moved or not program.all("init-process-group", "ddp", "fsdp"):
        return None
    loaded = program.first("load")
    if loaded is not None:
        return loaded, (
            "torch.load without map_location, and nothing calls set_device(local_rank): all {ranks} ranks load to and "
            "compute on cuda:0."
        )
    return moved[0], f"{moved[0].detail} without set_device(local_rank) means cuda:0 in all {{ranks}} ranks."


def _is_map_location(program: Program, seen: Seen) -> bool:
    before = program.source.text[max(0, seen.span.start - 40) : seen.span.start]
    return re.search(r"map_location\s*=\s*(?:torch\.device\(\s*)?$", before) is not None


def _selects(program: Program) -> bool:
    """Whether something chooses a device by rank."""
    if program.all("set-device", "local-rank-use", "process-index-as-device"):
        return True
    names = {"torch.cuda.device", "torch.cuda.device_count"}
    return any(seen.detail in names for seen in program.all("cuda-call"))


def _bare(program: Program, seen: Seen) -> bool:
    """Whether it moves something to the current card, which is the first one while nothing selects another."""
    return seen.detail == '.to("cuda")' or (
        seen.detail == ".cuda()" and program.source.slice(seen.span).endswith(".cuda()")
    )
