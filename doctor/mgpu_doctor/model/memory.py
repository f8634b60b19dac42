"""What a launch needs of memory: ranges in bytes, each part with the assumption that it rests on."""

from __future__ import annotations

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One use of memory, in bytes.

    ``purpose``: ``weights``, ``KV cache``, ``gradients``, ``optimizer``, ``model states`` (weights, gradients and
    optimizer together, where an engine splits them), ``activations``, ``logits``, ``adapter``, ``CUDA context``,
    ``checkpoint``. ``high`` is None where nothing bounds it. ``why`` says what the numbers rest on.
    """

    purpose: str
    low: int
    high: int | None
    why: str


@dataclass(frozen=True, slots=True)
class CardLoad:
    """What one of several cards holds of a model that one process spreads.

    ``card`` is the index among the visible ones; ``share`` the bytes of the weights on it; ``modules`` what stands
    there, first and last.
    """

    card: int
    share: int
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where accelerate puts the modules of a model.

    ``modules`` maps each name of the device map to a card's visible index, ``cpu`` or ``disk``, in the map's order.
    """

    modules: tuple[tuple[str, int | str], ...]
    loads: tuple[CardLoad, ...]
    host: int
    """Bytes of the weights that stay in host memory or on the disk."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one launch needs of each card and of the host, in bytes.

    ``form``: ``one`` (one process, one card), ``replicas`` (a whole model in each process), ``split`` (one model over
    the cards of one process), ``sharded`` (an engine splits the model over the processes). ``weights`` are the whole
    model's bytes as loaded. ``card`` are the parts on the card that needs most; of a ``split`` these are for all cards
    together. ``host`` are the parts in host memory, of all processes of one node together. ``uncounted`` names what
    has no bound here, so that ``high`` is None.
    """

    model: str
    origin: str
    """Where the size comes from: ``4 safetensors headers``, ``the facts``."""
    parameters: int
    dtype: str
    weights: tuple[int, int | None]
    form: str
    purpose: str
    cards: int
    """How many cards of a node share the work; 0 where that is not known."""
    card: tuple[MemoryPart, ...]
    host: tuple[MemoryPart, ...] = ()
    uncounted: tuple[str, ...] = ()
    token_bytes: int | None = None
    """What keys and values of one token take in all layers, at most; None where the model's shape is not known."""
    placement: Placement | Unknown | None = None
    """For a ``split``: which part goes where; None for any other form."""

    @property
    def low(self) -> int:
        """Bytes that a card surely needs (of a ``split``: all cards together)."""
        return sum(part.low for part in self.card)

    @property
    def high(self) -> int | None:
        """Bytes that are enough; None when a part of it has no bound."""
        return _highest(self.card, self.uncounted)


@dataclass(frozen=True, slots=True)
class Choice:
    """Memory split or throughput: what a command is (``kind``: ``split`` or ``replicas``) and what the other would be.

    ``does`` and ``other`` are clauses without a full stop; ``command`` is the command for the other, None where
    there is none to be had by words alone.
    """

    kind: str
    does: str
    other: str
    command: str | None


@dataclass(frozen=True, slots=True)
class CardRoom:
    """A card that the launch works on: nvidia-smi's index, its memory in bytes, and what is free, None: not known."""

    index: int
    total: int
    free: int | None


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """The room on the cards: those that are used, or where that is not ``certain`` all of the machine's."""

    cards: tuple[CardRoom, ...]
    certain: bool

    @property
    def smallest(self) -> CardRoom:
        """The card with the least memory."""
        return min(self.cards, key=lambda card: card.total)

    @property
    def largest(self) -> CardRoom:
        """The card with the most memory."""
        return max(self.cards, key=lambda card: card.total)

    @property
    def together(self) -> int:
        """Memory of all cards, in bytes."""
        return sum(card.total for card in self.cards)


def _highest(parts: tuple[MemoryPart, ...], uncounted: tuple[str, ...]) -> int | None:
    if uncounted:
        return None
    total = 0
    for part in parts:
        if part.high is None:
            return None
        total += part.high
    return total


def gib(amount: float) -> str:
    """Bytes as people read them: ``13.5 GiB``, ``0.4 GiB``, ``512 MiB``; no more digits than are meant."""
    return f"{bare_gib(amount)} GiB" if amount >= GIB // 10 else f"{amount / (1 << 20):.0f} MiB"


def bare_gib(amount: float) -> str:
    """The number of GiB alone: ``0.4``, ``13.5``, ``141``."""
    return f"{amount / GIB:.0f}" if amount >= 100 * GIB else f"{amount / GIB:.1f}"
