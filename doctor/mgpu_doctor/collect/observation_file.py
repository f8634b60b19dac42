"""An observation as plain JSON, and back: what ``mgpu-doctor probe --save`` writes and examples of rules hold.

The keys are those of :mod:`mgpu_doctor.model.observation`. What is not known is absent, or stands with its reason in
``unknown`` (key → reason) of the object it belongs to. ``null`` is an answer where "there is none" is one (the
device of a process on the CPU, a variable that is unset), and means "not known" elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from mgpu_doctor.collect.facts_values import WrongTypeError, kind_of, read_flag, read_text
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen, StageSeen

SCHEMA_VERSION = 1
"""Version of the JSON form."""

LARGEST = 16 * 1024 * 1024
"""Bytes above which a file is refused."""

_STATES = ("done", "failed", "killed", "hung", "missing")
_STAGE_STATES = ("ok", "failed", "hung", "skipped")
_KINDS = ("probe", "watch")

Reader = Callable[[Any, str], Any]


def load_observation(path: str) -> Observation:
    """The observation in a file.

    Raises:
        InputError: the file cannot be read, is no JSON object, is too large, was written by a later version, or
            holds a value of the wrong type (the key is named).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: is no regular file")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: is no path") from error
    if len(raw) > LARGEST:
        raise InputError(f"{path}: is larger than {LARGEST // 1024 // 1024} MiB, which no saved probe is")
    try:
        document = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    return observation_from(document, path)


def observation_from(document: object, name: str) -> Observation:
    """The observation in a plain document; ``name`` is what messages call it.

    Raises:
        InputError: a value of the wrong type, or a document of a later version.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{name}: a saved probe is a JSON object, not {kind_of(document)}")
    schema = document.get("schema", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"{name}: has schema {schema!r}, this mgpu-doctor reads schema {SCHEMA_VERSION}",
            hint="run the probe again with this version, or upgrade",
        )
    try:
        values = _read(document, _OBSERVATION, "")
    except WrongTypeError as error:
        raise InputError(f"{name}: {error}") from error
    values.setdefault("kind", "probe")
    values.setdefault("command", "")
    values.setdefault("ranks", ())
    return Observation(**values)


def observation_document(observation: Observation) -> dict[str, Any]:
    """The plain form of an observation; :func:`observation_from` makes an equal one of it."""
    return {"schema": SCHEMA_VERSION, **_plain(observation, _OBSERVATION)}


def _plain(record: object, keys: Mapping[str, tuple[Reader, bool]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for key in keys:
        value = getattr(record, key)
        if isinstance(value, Unknown):
            reasons[key] = value.reason
        else:
            out[key] = _plain_value(value)
    if reasons:
        out["unknown"] = reasons
    return out


def _plain_value(value: Any) -> Any:
    for kind, keys in _RECORDS:
        if isinstance(value, kind):
            return _plain(value, keys)
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    if isinstance(value, Unknown):
        return {"unknown": value.reason}
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no word for these; a sum that came out so is worth keeping.
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _read(document: object, keys: Mapping[str, tuple[Reader, bool]], prefix: str) -> dict[str, Any]:
    """The fields that a document fills; ``None`` stays only where it is an answer."""
    if not isinstance(document, Mapping):
        _refuse(document, prefix.rstrip(".") or "the document", "an object")
    reasons = _texts(document.get("unknown") or {}, f"{prefix}unknown")
    known = {*keys, "unknown", *(() if prefix else ("schema",))}
    for key in document:
        if key not in known:
            raise WrongTypeError(f"{prefix}{key} is no key of a saved probe")
    values: dict[str, Any] = {}
    for key, (reader, nullable) in keys.items():
        if key in reasons:
            values[key] = Unknown(reasons[key])
        elif key in document and (document[key] is not None or nullable):
            values[key] = None if document[key] is None else reader(document[key], prefix + key)
    return values


def _refuse(value: object, key: str, wanted: str) -> NoReturn:
    raise WrongTypeError(f"{key} must be {wanted}, not {kind_of(value)}")


def _whole(value: Any, key: str) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else _refuse(value, key, "a whole number")


def _number(value: Any, key: str) -> float:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(value, key, "a number")
    try:
        return float(value)
    except OverflowError:
        raise WrongTypeError(f"{key} is too large a number") from None


def _list(value: Any, key: str) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else _refuse(value, key, "a list")


def _texts(value: Any, key: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        _refuse(value, key, "an object")
    return {str(name): read_text(item, f"{key}.{name}") for name, item in value.items()}


def _many(reader: Reader) -> Reader:
    return lambda value, key: tuple(reader(item, f"{key}[{number}]") for number, item in enumerate(_list(value, key)))


def _one_of(*words: str) -> Reader:
    def read(value: Any, key: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise WrongTypeError(f"{key} must be one of {', '.join(words)}, not {value!r}")
        return value

    return read


def _pair(value: Any, key: str) -> tuple[int, int]:
    items = tuple(_list(value, key))
    if len(items) != 2:
        raise WrongTypeError(f"{key} must be a pair of ranks")
    return _whole(items[0], key), _whole(items[1], key)


def _uuid_or_reason(value: Any, key: str) -> str | Unknown:
    """A promised UUID; null, or an object with the reason, where none could be promised."""
    if value is None:
        return Unknown("it was not promised")
    if isinstance(value, Mapping):
        return Unknown(read_text(value.get("unknown"), f"{key}.unknown"))
    return read_text(value, key)


def _records(kind: type[Any], keys: Mapping[str, tuple[Reader, bool]], needed: tuple[str, ...]) -> Reader:
    def read(value: Any, key: str) -> Any:
        values = _read(value, keys, f"{key}.")
        for name in needed:
            if name not in values:
                raise WrongTypeError(f"{key}.{name} is missing")
        return kind(**values)

    return _many(read)


# Each key with its reader, and whether null is an answer.
_RANK: dict[str, tuple[Reader, bool]] = {
    "rank": (_whole, False),
    "local_rank": (_whole, False),
    "world_size": (_whole, False),
    "pid": (_whole, False),
    "host": (read_text, False),
    "visible": (read_text, True),
    "device_count": (_whole, False),
    "device_index": (_whole, True),
    "device_name": (read_text, False),
    "uuid": (read_text, True),
    "pci_bus_id": (read_text, False),
    "physical_index": (_whole, False),
    "master": (read_text, True),
    "state": (_one_of(*_STATES), False),
    "stage": (read_text, False),
    "exit_code": (_whole, True),
    "signal": (read_text, True),
    "error": (read_text, True),
    "stack": (_many(read_text), False),
    "solo_ms": (_number, False),
    "together_ms": (_number, False),
}

_LINK: dict[str, tuple[Reader, bool]] = {
    "a": (_whole, False),
    "b": (_whole, False),
    "peer_access": (read_flag, False),
    "gib_per_s": (_number, False),
    "transport": (read_text, False),
}

_STAGE: dict[str, tuple[Reader, bool]] = {
    "name": (read_text, False),
    "state": (_one_of(*_STAGE_STATES), False),
    "seconds": (_number, False),
    "ranks": (_many(_whole), False),
    "detail": (read_text, False),
}


def _rank(value: Any, key: str) -> RankSeen:
    values = _read(value, _RANK, f"{key}.")
    values.setdefault("rank", Unknown("the launcher told it none"))
    return RankSeen(**values)


_OBSERVATION: dict[str, tuple[Reader, bool]] = {
    "kind": (_one_of(*_KINDS), False),
    "command": (read_text, False),
    "ranks": (_many(_rank), False),
    "promised_processes": (_whole, False),
    "promised_uuids": (_many(_uuid_or_reason), False),
    "on_gpu": (read_flag, False),
    "backend": (read_text, False),
    "stages": (_records(StageSeen, _STAGE, ("name", "state")), False),
    "sum_expected": (_number, False),
    "sum_measured": (_many(_number), False),
    "all_reduce_gib_per_s": (_number, False),
    "links": (_records(LinkSeen, _LINK, ("a", "b")), False),
    "idle_uuids": (_many(read_text), False),
    "bad_pairs": (_many(_pair), False),
    "cured_by": (read_text, True),
    "seconds": (_number, False),
    "launcher_exit_code": (_whole, True),
    "launcher_error": (read_text, True),
    "output": (_many(read_text), False),
    "versions": (_texts, False),
    "notes": (_many(read_text), False),
}

_RECORDS: tuple[tuple[type[Any], Mapping[str, tuple[Reader, bool]]], ...] = (
    (RankSeen, _RANK),
    (LinkSeen, _LINK),
    (StageSeen, _STAGE),
)
