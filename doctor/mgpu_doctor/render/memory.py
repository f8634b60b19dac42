"""What a launch needs of memory, in words for people and as plain data for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mgpu_doctor.memory.choice import choice_of
from mgpu_doctor.memory.fit import memory_fit
from mgpu_doctor.memory.need import memory_need
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import (
    CardLoad,
    Choice,
    MemoryFit,
    MemoryNeed,
    MemoryPart,
    Placement,
    bare_gib,
    gib,
)
from mgpu_doctor.render.clean import mask, one_line

if TYPE_CHECKING:
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch


class Line(NamedTuple):
    """A labelled statement; ``origin`` says what it rests on."""

    label: str
    value: str
    origin: str = ""


def memory_lines(case: Case, launch: Launch) -> Iterator[Line]:
    """The statements of ``explain`` about memory; none where the model's size is not known."""
    need = memory_need(case, launch)
    if isinstance(need, Unknown):
        return
    fit = memory_fit(case, launch)
    yield Line("memory", one_line(_amounts(need) + _rooms(need, fit)), one_line(_basis(need)))
    if isinstance(need.placement, Placement):
        yield Line("placement", one_line(_placement(need.placement)), "as accelerate computes it")
    for part in need.host:
        yield Line("host memory", one_line(f"{_range(part.low, part.high)}: {part.why}"))
    choice = choice_of(launch, need, fit)
    if choice is not None:
        yield Line("choice", one_line(_decision(choice)))


def _amounts(need: MemoryNeed) -> str:
    several = need.cards > 1
    where = " a card" if several else ""
    if need.form == "split" and need.cards != 1:
        where = f" on {need.cards} cards together" if several else " on all cards together"
    parts = ", ".join(_part(part) for part in need.card if part.high != 0)
    return f"{_range(need.low, need.high)}{where}: {parts}"


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {gib(low)}"
    if bare_gib(low) == bare_gib(high):
        return f"about {gib(high)}"
    return f"about {bare_gib(low)}–{gib(high)}"


def _part(part: MemoryPart) -> str:
    if part.high is None:
        size = "not counted" if not part.low else f"{bare_gib(part.low)} or more"
    elif bare_gib(part.low) == bare_gib(part.high):
        size = bare_gib(part.high)
    else:
        size = f"{bare_gib(part.low) if part.low else 0}–{bare_gib(part.high)}"
    return f"{part.purpose} {size} ({part.why})"


def _rooms(need: MemoryNeed, fit: MemoryFit | Unknown) -> str:
    if isinstance(fit, Unknown):
        return ""
    if need.form == "split" and len(fit.cards) > 1:
        return f"; the cards have {gib(fit.together)} together"
    small, large = fit.smallest, fit.largest
    has = gib(small.total) if bare_gib(small.total) == bare_gib(large.total) else f"{gib(small.total)} or more"
    free = min((card.free for card in fit.cards if card.free is not None), default=None)
    taken = f", {gib(free)} of it free" if free is not None and bare_gib(free) != bare_gib(small.total) else ""
    return f"; {'the card has' if len(fit.cards) == 1 else 'each card has'} {has}{taken}"


def _basis(need: MemoryNeed) -> str:
    count = need.parameters
    shown = f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    left_out = f"; not counted: {', '.join(need.uncounted)}" if need.uncounted else ""
    return f"{shown} parameters, from {need.origin}{left_out}"


def _placement(found: Placement) -> str:
    parts = [f"cuda:{load.card} {gib(load.share)} ({_modules(load)})" for load in found.loads]
    if found.host:
        parts.append(f"host memory or disk {gib(found.host)}")
    return ", ".join(parts)


_NUMBERED = re.compile(r"^(.*\.)?(\w+)\.(\d+)$")


def _modules(load: CardLoad) -> str:
    """Module names, runs of layers drawn together: ``model.embed_tokens, layers 0–7``."""
    shown: list[str] = []
    first = last = -1
    for name in (*load.modules, ""):
        numbered = _NUMBERED.match(name)
        if numbered is not None:
            number = int(numbered.group(3))
            first = number if first < 0 else first
            last = number
            continue
        if first >= 0:
            shown.append(f"layer {first}" if first == last else f"layers {first}–{last}")
            first = -1
        if name:
            shown.append(name)
    return ", ".join(shown)


def _decision(choice: Choice) -> str:
    command = f": {mask(choice.command)}" if choice.command is not None else ""
    return f"{choice.does}; {choice.other}{command}"


def memory_document(case: Case, launch: Launch) -> dict[str, Any] | None:
    """The same as plain data, in bytes; None where the model's size is not known."""
    need = memory_need(case, launch)
    if isinstance(need, Unknown):
        return None
    fit = memory_fit(case, launch)
    choice = choice_of(launch, need, fit)
    placement = need.placement
    return {
        "model": need.model,
        "origin": need.origin,
        "parameters": need.parameters,
        "dtype": need.dtype,
        "form": need.form,
        "cards": need.cards,
        "low": need.low,
        "high": need.high,
        "parts": [_part_document(part) for part in need.card],
        "host": [_part_document(part) for part in need.host],
        "uncounted": list(need.uncounted),
        "rooms": None
        if isinstance(fit, Unknown)
        else [{"index": card.index, "total": card.total, "free": card.free} for card in fit.cards],
        "placement": dict(placement.modules) if isinstance(placement, Placement) else None,
        "choice": None
        if choice is None
        else {
            "kind": choice.kind,
            "does": choice.does,
            "other": choice.other,
            "command": None if choice.command is None else mask(choice.command),
        },
    }


def _part_document(part: MemoryPart) -> dict[str, Any]:
    return {"purpose": part.purpose, "low": part.low, "high": part.high, "why": part.why}
