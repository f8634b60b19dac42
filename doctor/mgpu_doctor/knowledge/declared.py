"""What a parser declares, whether it was read from source text or from the shipped tables."""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.record import dataclass, replace

COMPUTED = Unknown("the default is computed when the launcher starts")
MAXIMUM_FILE_SIZE = 2_000_000
"""Characters; a larger file is not a launcher's parser and is not read."""

BOOLEAN = "string_to_bool"
"""The converter of yes/no fields: yes, true, t, y, 1 and no, false, f, n, 0 in any case."""


class UnreadableSourceError(ValueError):
    """The text is not the Python source that was expected; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ParserTable:
    """An argument parser as its source declares it."""

    options: tuple[OptionSpec, ...]
    abbreviations: bool
    """Whether unambiguous prefixes of long options are taken (``allow_abbrev``)."""


def with_spellings(fields: Iterable[OptionSpec], dashes: bool) -> tuple[OptionSpec, ...]:
    """The options that the parser makes of fields: spellings with dashes, and ``--no_x`` for switches that are on.

    ``dashes``: whether this release of transformers also takes ``--some-name`` (from 4.46).
    """
    out: list[OptionSpec] = []
    for spec in fields:
        names = [f"--{spec.dest}"]
        if dashes and "_" in spec.dest:
            names.append(f"--{spec.dest.replace('_', '-')}")
        out.append(replace(spec, flags=(*names, *spec.flags[1:])))
        if spec.type == BOOLEAN and spec.default is True:
            negative = [f"--no_{spec.dest}"]
            if dashes:
                negative.append(f"--no-{spec.dest.replace('_', '-')}")
            out.append(OptionSpec(spec.dest, tuple(negative), "store_false", 0, default=False, const=False))
    return tuple(out)
