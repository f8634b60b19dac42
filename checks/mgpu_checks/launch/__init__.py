"""Rules about what gets started, and by whom; with what several of them need."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import Case, Launch, Layer, Option, OptionSpec, ParseProblem, Span, Unknown

TABLES = {
    "accelerate": ("accelerate launch", "accelerate"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "torchrun": ("torchrun", "torch"),
    "torch.distributed.run": ("torchrun", "torch"),
    "torch.distributed.launch": ("torch.distributed.launch", "torch"),
}
"""Rank launcher → the name of its option table, and the distribution that it comes with."""


def typed_layers(launch: Launch) -> tuple[Layer, ...]:
    """The rank launchers that somebody typed, outermost first."""
    return tuple(layer for layer in launch.layers if layer.launcher in TABLES and not layer.implied)


def parse_problems(case: Case, *kinds: str) -> Iterator[tuple[Launch, Layer, ParseProblem]]:
    """What launchers refuse in their command lines, of these kinds."""
    for launch in case.launches:
        for layer in typed_layers(launch):
            for problem in layer.problems:
                if problem.kind in kinds:
                    yield launch, layer, problem


def command_name(layer: Layer) -> str:
    """The launcher as people type it: ``accelerate launch``, ``python -m torch.distributed.run``."""
    if layer.launcher == "accelerate":
        return "accelerate launch"
    return f"python -m {layer.launcher}" if layer.launcher.startswith("torch.") else layer.launcher


def release_name(layer: Layer) -> str:
    """The distribution and its release: ``torch 2.6.0``; says when the release is only assumed."""
    package = TABLES[layer.launcher][1]
    release = layer.release
    if release is None or release.version is None:
        return package
    return f"{package} {release.version}" + ("" if release.certain else " (the latest known)")


def is_certain(layer: Layer) -> bool:
    """Whether the release that the launcher comes from is known, not assumed."""
    return layer.release is not None and layer.release.certain


def option_specs(case: Case, layer: Layer) -> tuple[OptionSpec, ...]:
    """The launcher's own options; empty when they are not known."""
    specs = case.knowledge.options(TABLES[layer.launcher][0])
    return () if isinstance(specs, Unknown) else tuple(spec for spec in specs if spec.flags)


def stands_at(launch: Launch, span: Span, text: str) -> bool:
    """Whether the text stands literally at the start of a span, so that it can be edited there."""
    return bool(text) and launch.command.source.slice(span).startswith(text)


def is_typed(launch: Launch, option: Option) -> bool:
    """Whether an option stands literally in the text that was read."""
    return stands_at(launch, option.span, option.flag)


def is_switch(spec: OptionSpec) -> bool:
    """Whether an option takes no value."""
    return spec.nargs == 0 or spec.action in {"store_true", "store_false", "store_const", "help", "version"}
