"""Other processes hold the memory of a GPU that the job would use."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import elsewhere, on_cpu
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
    Unknown,
    report,
)

_HELD = [{"gpu": 1, "pid": 4127, "command": "python serve.py", "memory_gib": 61.5}]

RULE = Rule(
    code="MGD215",
    slug="gpu-busy",
    title="A chosen GPU is in use",
    severity=Severity.WARNING,
    summary="Other processes hold memory of a GPU that the job would use.",
    why=(
        "Memory that another process holds is missing: the job stops with out of memory on that rank, or shares the "
        "card and runs at half speed while all other ranks wait for it. On a shared machine it is somebody's work."
    ),
    bad=(
        Example(
            "one of the list",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 t.py",
            facts={"gpu_processes": _HELD},
        ),
        Example("the first ranks", "torchrun --nproc_per_node 2 train.py", facts={"gpu_processes": _HELD}),
    ),
    good=(
        Example(
            "another GPU", "CUDA_VISIBLE_DEVICES=2,3 torchrun --nproc_per_node 2 t.py", facts={"gpu_processes": _HELD}
        ),
        Example("nobody there", "torchrun --nproc_per_node 2 train.py"),
        Example(
            "the desktop",
            "torchrun --nproc_per_node 2 train.py",
            facts={"gpu_processes": [{"gpu": 0, "pid": 900, "command": "/usr/lib/xorg/Xorg", "memory_gib": 0.1}]},
        ),
        Example(
            "a desktop on large screens",
            "torchrun --nproc_per_node 2 train.py",
            facts={
                "gpu_processes": [
                    {"gpu": 0, "pid": 900, "command": "/usr/lib/xorg/Xorg :0", "memory_gib": 0.8},
                    {"gpu": 0, "pid": 950, "command": "/usr/bin/gnome-shell", "memory_gib": 0.7},
                ]
            },
        ),
    ),
    sources=(
        Reference(
            "NVML 12.535, nvmlDeviceGetComputeRunningProcesses",
            "lists the processes with a context on a GPU and their memory",
        ),
        Reference(
            "torch 2.11.0+cu130 on one H100",
            "two ranks on one card: the same product took 1.43 ms alone, 3.6 ms together",
            ran=True,
        ),
    ),
    fix="choose GPUs that are free, or wait for the other job",
    signatures=(
        Signature(
            r"Free memory on device .*is less than desired GPU memory utilization",
            "vllm 0.9.2 and later (public reports)",
            "ValueError: Free memory on device (20.15/79.25 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.33 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes.",
        ),
    ),
)

LEAST_GIB = 0.5
"""Less than this is a desktop or a monitor."""

_DESKTOP = frozenset(
    {"xorg", "x", "xwayland", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell", "cinnamon", "mutter", "sway",
     "weston", "compiz", "gnome-remote-desktop-daemon"}
)  # fmt: skip
"""Programs that draw the desktop: they cannot be waited for, and take about a gigabyte at most."""


def find(case: Case) -> Iterator[Finding]:
    """Launches on this machine that would meet somebody on their GPUs."""
    for launch in case.launches:
        if on_cpu(case, launch) or elsewhere(launch.command):
            continue
        chosen = _chosen(launch)
        if not chosen:
            continue
        holders = case.require(case.facts.gpu_processes)
        found = [one for one in holders if one.gpu in chosen and _much(one.memory_gib) and not _draws(one.command)]
        if not found:
            continue
        texts = []
        for one in found:
            who = _short(one.command) if isinstance(one.command, str) else "a process"
            who += f" of {one.user}" if isinstance(one.user, str) else ""
            pid = f" (pid {one.pid})" if isinstance(one.pid, int) else ""
            memory = f"{one.memory_gib:.1f} GiB" if isinstance(one.memory_gib, (int, float)) else "memory"
            texts.append(f"GPU {one.gpu}: {who}{pid} holds {memory}")
        cards = sorted({one.gpu for one in found})
        gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
        free = [gpu.index for gpu in gpus if gpu.index not in {one.gpu for one in holders}]
        enough = free[: len(chosen)] if len(free) >= len(chosen) else []
        title = f"use CUDA_VISIBLE_DEVICES={','.join(map(str, enough))}" if enough else "wait until they are free"
        yield report(
            RULE,
            f"GPU {', '.join(map(str, cards))} of the {len(chosen)} chosen {'are' if len(cards) > 1 else 'is'} in use: "
            f"{texts[0].partition(': ')[2]}" + ("." if len(texts) == 1 else f", and {len(texts) - 1} more."),
            launch.visible.origin.location or launch.command.locate(launch.command.words[0].span),
            subject=None,
            evidence=texts if len(texts) > 1 else (),
            fix=Fix(title),
        )


def _short(command: str, most: int = 60) -> str:
    command = " ".join(command.split())
    return command if len(command) <= most else command[: most - 1].rstrip() + "…"


def _draws(command: str | Unknown) -> bool:
    words = command.split() if isinstance(command, str) else []
    return bool(words) and words[0].rpartition("/")[2].lower() in _DESKTOP


def _much(memory: float | Unknown) -> bool:
    return not isinstance(memory, Unknown) and memory >= LEAST_GIB


def _chosen(launch: Launch) -> tuple[int, ...]:
    """The physical GPUs that the job would use: one a rank, or all visible ones for a model that is split."""
    if not launch.distributed_layers and launch.spread.known != "split":
        return _listed_by_user(launch)
    if not isinstance(launch.ranks, Unknown) and launch.spread.known != "split":
        return tuple(dict.fromkeys(r.physical_index for r in launch.ranks if isinstance(r.physical_index, int)))
    return _visible(launch)


def _listed_by_user(launch: Launch) -> tuple[int, ...]:
    """A plain program uses the list that somebody gave it; without one it is not known which GPU it takes."""
    visible = launch.visible.value
    if isinstance(visible, Unknown) or visible.all:
        return ()
    return _visible(launch)


def _visible(launch: Launch) -> tuple[int, ...]:
    visible = launch.visible.value
    if isinstance(visible, Unknown):
        return ()
    return tuple(index for index in visible.physical if isinstance(index, int))
