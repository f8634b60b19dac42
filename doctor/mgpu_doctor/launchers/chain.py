"""How launchers are chained: each peels its own words off a command and changes the plan.

A launcher module has two functions. ``peel(words, form, context)`` recognises the
launcher in front of ``words`` and splits its options from what it starts;
it answers None when the words are not its own. ``plan(layer, before, context)`` takes the processes
that would run the launcher and answers with the processes that the launcher starts.
"""

from __future__ import annotations

from mgpu_doctor.model.command import Command, Variable, Word
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.knowledge import Knowledge
from mgpu_doctor.model.known import Setting
from mgpu_doctor.model.launch import Engine, Layer, Rendezvous, VisibleDevices
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Context:
    """What a launcher module may ask while it reads a command."""

    command: Command
    facts: Facts
    knowledge: Knowledge
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class Peeled:
    """A launcher's layer, and what it would start.

    ``form`` says what the first of ``rest`` is: ``command`` (a program on PATH or
    a path to one), ``script`` (a Python file), ``module`` (a Python module's name), ``inline``
    (``python -c``), or ``none`` (nothing is started, or nothing is left).
    """

    layer: Layer
    rest: tuple[Word, ...]
    form: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes at one depth of the chain, as far as they are known.

    ``processes_per_node`` and ``nodes`` count all processes at this depth.
    ``variables`` are those that the launcher sets for its children.
    ``groups`` is False when the processes do not form one group, each believing
    that it is alone.
    """

    processes_per_node: Setting[int]
    nodes: Setting[int]
    node_rank: Setting[int]
    visible: Setting[VisibleDevices]
    rendezvous: Rendezvous | None
    engine: Setting[Engine]
    groups: Setting[bool]
    variables: tuple[Variable, ...] = ()
    notes: tuple[str, ...] = ()
