"""One process spreads a model over several cards, or holds them all visible, although it fits on one."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    MemoryFit,
    MemoryNeed,
    Placement,
    Reference,
    Rule,
    Severity,
    Unknown,
    gib,
    memory_fit,
    memory_need,
    report,
)

_CHAT = "llamafactory-cli chat --model_name_or_path org/model --template default"
_8B = {"models": {"org/model": {"parameters": 8.03e9, "dtype": "bfloat16"}}}
_70B = {"models": {"org/model": {"parameters": 70.6e9, "dtype": "bfloat16"}}}
_SCRIPT = (
    "import torch\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("org/model", torch_dtype=torch.bfloat16, device_map="{kind}")\n'
    "for batch in data():\n    model.generate(**batch)\n"
)

RULE = Rule(
    code="MGD611",
    slug="model-fits-one-gpu",
    title="One GPU would do",
    severity=Severity.ADVICE,
    summary="one process spreads a model over several cards although it fits on one",
    why=(
        '`device_map="auto"` is there for models that are too large for a card. It means *balanced*: a small model is '
        "spread over all visible cards as well. These then work in turn, one at a time, so that nothing gets faster, "
        'and memory of all of them is taken. `device_map="sequential"` leaves it on the first card, and the others '
        "stay empty. Make one card visible; to use the others too, start a replica on each of them."
    ),
    bad=(
        Example("a chat with 8 B parameters over eight cards of 80 GiB", _CHAT, facts=_8B),
        Example(
            "device_map auto in a script",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 python generate.py",
            files={"generate.py": _SCRIPT.format(kind="auto")},
            facts=_8B,
        ),
        Example(
            "device_map sequential: the first card holds it all",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 python generate.py",
            files={"generate.py": _SCRIPT.format(kind="sequential")},
            facts=_8B,
        ),
    ),
    good=(
        Example("one card is visible", f"CUDA_VISIBLE_DEVICES=0 {_CHAT}", facts=_8B),
        Example("70 B parameters need several cards", _CHAT, facts=_70B),
        Example(
            "it would leave too little room for keys and values",
            _CHAT,
            facts={
                **_8B,
                "gpus": [
                    {"index": index, "name": "NVIDIA GeForce RTX 4090", "memory_gib": 23.99} for index in range(2)
                ],
            },
        ),
        Example("a model of unknown size", _CHAT),
        Example(
            "a replica on each card",
            "torchrun --nproc-per-node 8 generate.py",
            files={"generate.py": _SCRIPT.format(kind="cuda")},
            facts=_8B,
        ),
    ),
    sources=(
        Reference(
            "accelerate 0.20.3 to 1.15.0, utils/modeling.py get_balanced_memory()",
            "each card but the last is allowed an equal share of the model and room for 1.25 layers",
        ),
        Reference(
            "accelerate 1.7.0 with transformers 4.52.4; transformers 5.6.0, integrations/accelerate.py",
            "auto spreads models that fit on one card; sequential does not",
            ran=True,
        ),
        Reference(
            "llamafactory 0.8.3, 0.9.3, 0.9.5, hparams/parser.py get_infer_args()",
            'chat, api and webchat load with device_map = "auto"',
        ),
    ),
    fix="Make one GPU visible, or start a replica on each",
)

_COMFORTABLE = 0.6
"""The share of a card that weights may take where the size of keys and values is not known."""
_ROOM = 0.9
"""The share that is planned with: the allocator needs some room of its own."""
_TOKENS = 8192
"""Tokens of a conversation that must have room beside the weights."""


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch that spreads what one of its cards could hold."""
    for launch in case.launches:
        if launch.spread.known != "split" or launch.world_size.known != 1:
            continue
        need = memory_need(case, launch)
        if isinstance(need, Unknown):
            continue
        fit = case.require(memory_fit(case, launch))
        if need.form == "split" and fit.certain and len(fit.cards) > 1 and _fits(need, fit):
            yield _finding(launch, need, fit)


def _fits(need: MemoryNeed, fit: MemoryFit) -> bool:
    """Whether the smallest of the cards surely holds the weights, with room for a long conversation."""
    weights = need.weights[1]
    room = min(card.total if card.free is None else card.free for card in fit.cards)
    if weights is None:
        return False
    if need.token_bytes is None:
        return weights <= room * _COMFORTABLE
    context = sum(part.high or 0 for part in need.card if part.purpose == "CUDA context") // max(1, need.cards)
    return weights + context + need.token_bytes * _TOKENS <= room * _ROOM


def _finding(launch: Launch, need: MemoryNeed, fit: MemoryFit) -> Finding:
    card, weights = fit.smallest, need.weights[1] or need.weights[0]
    placement = need.placement
    if isinstance(placement, Placement) and len(placement.loads) == 1:
        where = f"all of it goes to cuda:{placement.loads[0].card}, and the other {len(fit.cards) - 1} stay empty"
    elif isinstance(placement, Placement):
        empty = len(fit.cards) - len(placement.loads)
        some = f"{len(placement.loads)} of {len(fit.cards)} cards" if empty else f"{len(fit.cards)} cards"
        where = f"it is spread over {some}, which work one at a time"
    else:
        where = f"one process has {len(fit.cards)} cards, of which no more than one works at a time"
    message = (
        f"{need.model} takes {gib(weights)} ({need.dtype}) and fits on one card of {gib(card.total)}, but {where}."
    )
    origin = launch.spread.origin.location or launch.visible.origin.location
    command = launch.command.source.slice(launch.command.span)
    return report(
        RULE,
        message,
        origin or launch.command.locate(launch.command.span),
        subject=need.model,
        evidence=(f"{need.parameters / 1e9:.2f} billion parameters, from {need.origin}",),
        fix=Fix(
            f"Make one card visible: CUDA_VISIBLE_DEVICES={card.index}",
            commands=(f"CUDA_VISIBLE_DEVICES={card.index} {command}",) if _is_plain(command) else (),
        ),
    )


def _is_plain(command: str) -> bool:
    """Whether a command is one line that does not set the list itself."""
    return "\n" not in command and "CUDA_VISIBLE_DEVICES" not in command
