"""The decision behind multi-GPU inference: one model split over the cards for its size, or replicas for throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import Choice, MemoryFit, MemoryNeed, gib

if TYPE_CHECKING:
    from mgpu_doctor.model.launch import Launch

_PURPOSES = frozenset({"predict", "chat", "serve", "evaluate"})
_PREDICT = ("stage sft", "do_predict true", "predict_with_generate true", "eval_dataset NAME", "output_dir DIR")


def choice_of(launch: Launch, need: MemoryNeed, fit: MemoryFit | Unknown) -> Choice | None:
    """Which of the two a command for inference is, what it costs, and the command for the other.

    None where the question does not arise: training, one card, or a form that is neither.
    """
    if need.purpose not in _PURPOSES or isinstance(fit, Unknown) or need.cards < 2:
        return None
    if need.form == "split":
        return _split(launch, need, fit)
    return _replicas(launch, need) if need.form == "replicas" else None


def _split(launch: Launch, need: MemoryNeed, fit: MemoryFit) -> Choice:
    cards, size = need.cards, gib(need.weights[0])
    does = f"memory split: one copy of the model ({size}) over {cards} cards, which take turns: no faster than one card"
    context = sum(part.low for part in need.card if part.purpose == "CUDA context") // cards
    if need.weights[0] + context > fit.smallest.total:
        return Choice(
            "split", does, f"a replica on each card is not possible: a card has {gib(fit.smallest.total)}", None
        )
    other = f"the other way is throughput: {cards} replicas × {size}, one on each card, for {cards} times the work"
    return Choice("split", does, other, _as_replicas(launch))


def _replicas(launch: Launch, need: MemoryNeed) -> Choice:
    size = gib(need.weights[0])
    does = (
        f"throughput: {need.cards} replicas × {size}, one on each card; "
        "each has inputs of its own, a single answer is no faster"
    )
    other = (
        "the other way is a memory split, for a model too large for one card: one process, its layers over the cards"
    )
    return Choice("replicas", does, other, _as_split(launch))


def _as_replicas(launch: Launch) -> str | None:
    """The command that answers a data set with a replica on each card."""
    target = launch.target
    if target.framework == "llamafactory" and target.subcommand in {"chat", "webchat", "api"}:
        words = [word.written for word in target.argument_words]
        if words and words[0].endswith((".yaml", ".yml", ".json")):
            return " ".join(["llamafactory-cli train", *words, *(pair.replace(" ", "=") for pair in _PREDICT)])
        return " ".join(["llamafactory-cli train", *words, *(f"--{pair}" for pair in _PREDICT)])
    command = _one_line(launch)
    return None if command is None else f"CUDA_VISIBLE_DEVICES=0 {command}  (once for each card, with its share)"


def _as_split(launch: Launch) -> str | None:
    """The command that spreads one model, where the framework has one."""
    target = launch.target
    model = target.argument("model_name_or_path")
    if target.framework == "llamafactory" and model is not None and model.value:
        template = target.argument("template")
        more = f" --template {template.value}" if template is not None and template.value else ""
        return f"llamafactory-cli api --model_name_or_path {model.value}{more}"
    if target.kind == "script" and target.word is not None:
        return f'python {target.word.written}  (with device_map="auto" where it loads the model)'
    return None


def _one_line(launch: Launch) -> str | None:
    text = launch.command.source.slice(launch.command.span)
    return None if "\n" in text or "CUDA_VISIBLE_DEVICES" in text else text
