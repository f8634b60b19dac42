"""What a run turned out to be, in one word and one sentence."""

from __future__ import annotations

from mgpu_doctor.model.record import dataclass

MULTI = "MULTI"
"""Several processes that form one group, each on a GPU of its own, and all work."""
SINGLE = "SINGLE"
"""One process."""
SHARED = "SHARED"
"""Several processes on one card."""
COPIES = "COPIES"
"""Several processes that do not form one group."""
CPU = "CPU"
"""The processes work on the CPU: nothing is said about GPUs."""
BROKEN = "BROKEN"
"""Something failed or hung."""
UNKNOWN = "UNKNOWN"
"""Too little was seen for any other word."""

FAILURES = frozenset({SHARED, COPIES, BROKEN})


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of promised against measured; ``agree`` is None where one of the two is not known."""

    subject: str
    promised: str
    measured: str
    agree: bool | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on an observation.

    ``word`` is one of this module's; ``sentence`` gives the reason, with numbers; ``stage`` is where it broke (BROKEN
    only). ``as_promised`` is False when the launch does something else than it says beforehand or is asked for, None
    when nothing was promised.
    """

    word: str
    sentence: str
    stage: str | None = None
    as_promised: bool | None = None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether this run is not what it was meant to be."""
        return self.word in FAILURES or self.as_promised is False

    @property
    def undecided(self) -> bool:
        """Whether too little was seen."""
        return self.word == UNKNOWN
