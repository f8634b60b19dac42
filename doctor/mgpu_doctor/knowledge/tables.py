"""The shipped tables: what launchers and frameworks declare, release by release.

Each package has one JSON file under ``data/``, made by ``tools/generate_knowledge.py`` from the
packages themselves and loaded when it is first asked for. A record that several releases
share is kept once, with the releases as runs of indices (``0-3,5``): options as ``[runs, record]``, texts as
``{runs: lines}``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from mgpu_doctor.knowledge.declared import COMPUTED
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.version import version_key

DATA = os.path.join(os.path.dirname(__file__), "data")


class Chosen(NamedTuple):
    """The tabled release that stands for an asked one; ``exact`` is False when it is only the nearest."""

    version: str
    place: int
    exact: bool


def _minor(version: str) -> list[str]:
    return ([*version.split("+", maxsplit=1)[0].split("."), "0"])[:2]


@lru_cache(maxsize=32)
def load(package: str) -> Mapping[str, object]:
    """The data of a package; empty when none is shipped."""
    path = os.path.join(DATA, f"{package}.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        loaded: dict[str, object] = json.load(file)
    return loaded


def releases(package: str) -> tuple[str, ...]:
    """The tabled releases of a package, oldest first."""
    return tuple(_texts(load(package).get("releases")))


def choose(package: str, version: str) -> Chosen | None:
    """The tabled release nearest to a version: the newest not above it, or a later patch of its minor.

    None when no release of the package is tabled.
    """
    known = releases(package)
    if not known:
        return None
    wanted = version_key(version)
    older = [at for at, candidate in enumerate(known) if version_key(candidate) <= wanted]
    index = older[-1] if older else 0
    if _minor(known[index]) != _minor(version):
        later = [at for at, candidate in enumerate(known) if _minor(candidate) == _minor(version)]
        index = later[0] if later else index
    return Chosen(known[index], index, version_key(known[index]) == wanted)


def options(package: str, table: str, index: int) -> tuple[OptionSpec, ...] | None:
    """The options of a table in the release with this index; None when that release has no such table."""
    found = _tables(package).get(table)
    if not isinstance(found, list):
        return None
    held = tuple(decode(record) for runs, record in found if contains(runs, index))
    return held or None


def values(package: str, table: str, index: int) -> tuple[str, ...] | None:
    """The texts of a table in the release with this index; None when that release has none."""
    held = [text for runs, texts in _groups(package, table) if contains(runs, index) for text in texts]
    return tuple(held) or None


def all_values(package: str, table: str) -> frozenset[str]:
    """The texts of a table in any release."""
    return frozenset(text for _, texts in _groups(package, table) for text in texts)


def _groups(package: str, table: str) -> list[tuple[str, list[str]]]:
    found = _tables(package).get(table)
    return [(runs, texts.split("\n")) for runs, texts in found.items()] if isinstance(found, dict) else []


def _tables(package: str) -> Mapping[str, object]:
    tables = load(package).get("tables")
    return tables if isinstance(tables, dict) else {}


def provenance(package: str, version: str) -> Mapping[str, str]:
    """The files that a release's tables were made from, with their digests (see :func:`digest`)."""
    found = load(package).get("provenance")
    files = found.get(version) if isinstance(found, dict) else None
    return files if isinstance(files, dict) else {}


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256: enough to see that a file is the released one."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decode(record: object) -> OptionSpec:
    """The option that a record stands for."""
    if not isinstance(record, dict):
        raise TypeError(record)
    dest = str(record["dest"])
    flags = record.get("flags")
    choices = record.get("choices")
    return OptionSpec(
        dest=dest,
        flags=(f"--{dest}",) if flags is None else tuple(flags),
        action=record.get("action", "store"),
        nargs=record.get("nargs"),
        type=record.get("type"),
        choices=None if choices is None else tuple(choices),
        default=_value(record.get("default")),
        required=record.get("required", False),
        const=_value(record.get("const")),
    )


def encode(spec: OptionSpec) -> dict[str, object]:
    """The record of an option, without what :func:`decode` fills in."""
    record: dict[str, object] = {"dest": spec.dest}
    if spec.flags != (f"--{spec.dest}",):
        record["flags"] = list(spec.flags)
    if spec.action != "store":
        record["action"] = spec.action
    if spec.nargs is not None:
        record["nargs"] = spec.nargs
    if spec.type is not None:
        record["type"] = spec.type
    if spec.choices is not None:
        record["choices"] = [_coded(choice) for choice in spec.choices]
    if spec.default is not None:
        record["default"] = _coded(spec.default)
    if spec.required:
        record["required"] = True
    if spec.const is not None:
        record["const"] = _coded(spec.const)
    return record


def _value(coded: object) -> object:
    if coded == {"computed": True}:
        return COMPUTED
    return coded


def _coded(value: object) -> object:
    return {"computed": True} if isinstance(value, Unknown) else value


def contains(runs: str, index: int) -> bool:
    """Whether a run list such as ``0-3,5`` holds an index."""
    for run in runs.split(","):
        first, _, last = run.partition("-")
        if int(first) <= index <= int(last or first):
            return True
    return False


def runs(indices: Iterable[int]) -> str:
    """The run list of some indices: the reverse of :func:`contains`."""
    out: list[list[int]] = []
    for index in sorted(indices):
        if out and out[-1][1] == index - 1:
            out[-1][1] = index
        else:
            out.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in out)


def merge(per_release: Sequence[Sequence[object]]) -> list[list[object]] | dict[str, str]:
    """One table for those of several releases, each release's order kept as far as they agree."""
    order: list[str] = []
    where: dict[str, list[int]] = {}
    for index in range(len(per_release) - 1, -1, -1):
        at = 0
        for record in per_release[index]:
            key = json.dumps(record, ensure_ascii=False)
            if key in where:
                where[key].append(index)
                at = max(at, order.index(key) + 1)
            else:
                order.insert(at, key)
                where[key] = [index]
                at += 1
    records = [(runs(where[key]), json.loads(key)) for key in order]
    if any(not isinstance(record, str) for _, record in records):
        return [[run, record] for run, record in records]
    grouped: dict[str, list[str]] = {}
    for run, record in records:
        grouped.setdefault(run, []).append(record)
    return {run: "\n".join(texts) for run, texts in grouped.items()}


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
