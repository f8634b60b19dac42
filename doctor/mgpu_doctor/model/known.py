"""Values that may be unknown, and where a value came from."""

from __future__ import annotations

from typing import Generic, TypeVar

from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Location

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that could not be found out, and why.

    The reason completes the sentence "cannot tell, because …" and is shown to people.
    An unknown never turns into a guess.
    """

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, and what it overrode.

    ``kind`` is one of ``option`` (on the command line), ``variable`` (environment),
    ``config`` (a configuration file), ``default`` (the launcher's own), ``derived``
    (computed from other values), ``facts`` (the machine). ``detail`` names it:
    ``--num_processes``, ``NPROC_PER_NODE``, ``ds.yaml``, ``accelerate 1.7.0``.
    """

    kind: str
    detail: str
    location: Location | None = None
    overrides: Setting[object] | None = None


@dataclass(frozen=True, slots=True)
class Setting(Generic[T_co]):
    """A value with its origin; the value is :class:`Unknown` when it cannot be told."""

    value: T_co | Unknown
    origin: Origin

    @property
    def known(self) -> T_co | None:
        """The value, or None when it is unknown."""
        return None if isinstance(self.value, Unknown) else self.value
