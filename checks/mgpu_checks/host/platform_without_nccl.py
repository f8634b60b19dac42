"""Several GPUs on a platform for which torch is built without NCCL and libuv."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import elsewhere, on_cpu, program_of
from mgpu_checks.host import numbers, on_windows, place_of, processes_of, through_torchrun, trains_with_library
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    report,
)

_WINDOWS = {"platform": "Windows-10-10.0.22631"}
_OLD = {**_WINDOWS, "packages": {"torch": "2.3.1+cu121", "accelerate": "1.0.1", "transformers": "4.45.2"}}
_MAC = {"platform": "macOS-14.5-arm64-arm-64bit", "gpus": []}
_NCCL = {"t.py": "import torch.distributed as dist\ndist.init_process_group('nccl')\n"}
_TRAINER = {
    "t.py": "from transformers import HfArgumentParser, Trainer, TrainingArguments\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(args=args).train()\n"
}
_FACTORY = {"sft.yaml": "stage: sft\ndo_train: true\nmodel_name_or_path: m\n"}

RULE = Rule(
    code="MGD708",
    slug="platform-without-nccl",
    title="This platform has no NCCL",
    severity=Severity.ERROR,
    summary="Ranks on Windows or macOS, where torch has neither NCCL nor a store with libuv.",
    why=(
        "NCCL exists for Linux only. torch for Windows is also built without libuv, but from 2.4 on torchrun's store "
        "asks for it: torchrun, `accelerate launch --multi_gpu` and LLaMA-Factory on several GPUs stop before the "
        "first rank works (`use_libuv was requested but PyTorch was built without libuv support`), and USE_LIBUV=0 "
        "does not reach that store. Programs that ask for the nccl backend stop in every release."
    ),
    bad=(
        Example("LLaMA-Factory starts torchrun", "llamafactory-cli train sft.yaml", files=_FACTORY, facts=_WINDOWS),
        Example("torchrun", "torchrun --nproc_per_node 2 train.py", facts=_WINDOWS),
        Example("USE_LIBUV does not help", "USE_LIBUV=0 torchrun --nproc_per_node 2 train.py", facts=_WINDOWS),
        Example("accelerate", "accelerate launch --multi_gpu --num_processes 2 train.py", facts=_WINDOWS),
        Example("an older torch, with NCCL asked for", "torchrun --nproc_per_node 2 t.py", files=_NCCL, facts=_OLD),
        Example("an older torch, with a Trainer", "torchrun --nproc_per_node 2 t.py", files=_TRAINER, facts=_OLD),
        Example("a Mac", "torchrun --nproc_per_node 2 t.py", files=_NCCL, facts=_MAC),
    ),
    good=(
        Example("Linux", "torchrun --nproc_per_node 2 train.py"),
        Example(
            "WSL is Linux",
            "torchrun --nproc_per_node 2 train.py",
            facts={"platform": "Linux-5.15.153.1-microsoft-standard-WSL2-x86_64-with-glibc2.35"},
        ),
        Example("one process", "python train.py", files=_TRAINER, facts=_WINDOWS),
        Example(
            "one GPU is chosen",
            "CUDA_VISIBLE_DEVICES=0 llamafactory-cli train sft.yaml",
            files=_FACTORY,
            facts=_WINDOWS,
        ),
        Example("a Windows machine alone", facts=_WINDOWS),
        Example("an older torch, backend not known", "torchrun --nproc_per_node 2 train.py", facts=_OLD),
        Example("a Mac with gloo", "torchrun --nproc_per_node 2 t.py", files={"t.py": "import torch\n"}, facts=_MAC),
        Example("another machine", "ssh gpu1 torchrun --nproc_per_node 2 train.py", facts=_WINDOWS),
    ),
    sources=(
        Reference(
            "torch 2.3.1, 2.4.1, 2.6.0, 2.9.1, 2.13.0, csrc/distributed/c10d/TCPStore.hpp",
            "useLibUV is false up to 2.3 and true from 2.4 on",
        ),
        Reference(
            "torch 2.6.0 and 2.13.0, distributed/elastic/rendezvous/static_tcp_rendezvous.py",
            "makes its TCPStore without use_libuv, so that USE_LIBUV does not matter",
        ),
        Reference(
            "torch 2.6.0 and 2.13.0 wheels for win_amd64, lib/torch_cpu.dll",
            "hold the refusal `… without libuv support` and no LibUVStoreDaemon",
        ),
        Reference(
            "torch 2.13.0, distributed/distributed_c10d.py",
            "RuntimeError: Distributed package doesn't have NCCL built in",
        ),
        Reference("deepspeed 0.16.9, accelerator/cuda_accelerator.py", "takes gloo on Windows: not judged here"),
        Reference("llamafactory 0.9.3, cli.py", "train with more than one visible GPU starts torchrun by itself"),
    ),
    fix="train on Linux or in WSL 2; on Windows itself use one GPU in one process",
    signatures=(
        Signature(
            r"use_libuv was requested but PyTorch was buil[dt] without libuv support",
            "torch 2.6.0 (win_amd64): `build`, 2.13.0: `built`, lib/torch_cpu.dll",
            "torch.distributed.DistStoreError: use_libuv was requested but PyTorch was build without libuv support",
        ),
        Signature(
            r"Distributed package doesn't have NCCL built in",
            "torch 2.13.0, distributed/distributed_c10d.py",
            "RuntimeError: Distributed package doesn't have NCCL built in",
        ),
        Signature(
            r"Redirects are currently not supported in Windows or MacOs",
            "torch 2.6.0, distributed/elastic/multiprocessing/redirects.py",
            "NOTE: Redirects are currently not supported in Windows or MacOs.",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Launches of ranks on Windows and macOS that cannot work."""
    platform = case.facts.platform
    windows = on_windows(case)
    mac = isinstance(platform, str) and platform.lower().startswith(("macos", "darwin"))
    if not windows and not mac:
        return
    for launch in case.launches:
        if elsewhere(launch.command) or (not _starts_torchrun(launch) and processes_of(launch) < 2):
            continue
        reason = _without_libuv(case, launch) if windows else None
        reason = reason or _without_nccl(case, launch, windows=windows)
        if reason is not None:
            yield report(
                RULE,
                f"This machine runs {'Windows' if windows else 'macOS'}: {reason}.",
                place_of(launch),
                evidence=(f"platform: {platform}",),
                fix=_fix(launch, windows=windows),
            )


def _starts_torchrun(launch: Launch) -> bool:
    """Whether torch's launcher runs: its own names, or accelerate for more than one process."""
    if through_torchrun(launch):
        return True
    return launch.layer("accelerate") is not None and (launch.processes_per_node.known or 1) > 1


def _without_libuv(case: Case, launch: Launch) -> str | None:
    if not _starts_torchrun(launch):
        return None
    version = case.knowledge.release("torch")
    if version.version is None or numbers(version.version) < (2, 4) or not version.certain:
        return None
    who = "torchrun"
    if launch.layer("accelerate") is not None:
        who = "accelerate starts torchrun, which"
    elif any(layer.implied for layer in launch.distributed_layers):
        who = "several GPUs make the command start torchrun, which"
    return (
        f"{who} stops in torch {version.version} with `use_libuv was requested but PyTorch was built without libuv "
        "support`, and USE_LIBUV=0 does not change that; NCCL does not exist there either"
    )


def _without_nccl(case: Case, launch: Launch, *, windows: bool) -> str | None:
    if on_cpu(case, launch) or launch.layer("deepspeed") is not None:
        return None
    program = program_of(launch)
    text = program.source.text if program is not None else ""
    asked = program is not None and program.first("init-process-group") is not None
    asked = asked and ('"nccl"' in text or "'nccl'" in text) and "gloo" not in text
    if asked or (windows and trains_with_library(launch)):
        return "torch has no NCCL there, which the ranks ask for (`Distributed package doesn't have NCCL built in`)"
    return None


def _fix(launch: Launch, *, windows: bool) -> Fix:
    if windows and launch.distributed_layers and all(layer.implied for layer in launch.distributed_layers):
        return Fix("run it in WSL 2 or on Linux; or use one GPU", commands=("set CUDA_VISIBLE_DEVICES=0",))
    if windows:
        return Fix("run it in WSL 2 or on Linux; or on one GPU, started by python itself and without ranks")
    return Fix("run it on Linux with NVIDIA GPUs, or ask for the gloo backend")
