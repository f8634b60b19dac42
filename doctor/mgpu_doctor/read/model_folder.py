"""A model's folder: which files transformers would load from it, and whether they are whole.

transformers 4.40.0 to 5.23.0, modeling_utils.py: out of a directory ``model.safetensors`` is loaded, else the shards
that ``model.safetensors.index.json`` names, else ``pytorch_model.bin``, else those of ``pytorch_model.bin.index.json``.
peft 0.15.2, utils/save_and_load.py: ``adapter_model.safetensors``, else ``adapter_model.bin``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import FileFault, ModelFolder, Tensor
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.read.safetensors import LARGEST_READ, Header, foreign_start, read_header, regular_size, unreadable

MOST_NAMES = 100_000
MOST_SHARDS = 4096
LARGEST_JSON = 32 * 1024 * 1024
"""Bytes above which a JSON file is not read; the index of a model with a hundred thousand tensors has ten million."""

MOST_HEADERS = 256 * 1024 * 1024
"""Bytes of headers that are read of one folder; two hundred shards may then have more than a megabyte each."""

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
                "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json", "generation_config.json",
                "preprocessor_config.json")  # fmt: skip
_START = 256
_ZIP_TAIL = 22 + 65535
"""The end-of-archive record and the longest comment behind it: no more of a zip file's end has to be searched."""


@dataclass(frozen=True, slots=True)
class _Json:
    """A JSON object that was read, or the fault that kept it from being read; both None when there is no file."""

    data: Mapping[str, object] | None = None
    fault: FileFault | None = None


def read_model_folder(full: str, shown: str) -> ModelFolder | Unknown:
    """What lies in the folder at ``full``, which is called ``shown``; Unknown when it cannot be listed."""
    try:
        names = _names(full)
    except (OSError, ValueError) as error:
        return Unknown(f"{shown} cannot be listed: {getattr(error, 'strerror', None) or error}")
    config, adapter = _object(full, "config.json", names), _object(full, "adapter_config.json", names)
    faults = [found.fault for found in (config, adapter) if found.fault is not None]
    index, weights, fault = _chosen(full, names, config.data, adapter.data)
    faults += [fault] if fault is not None else []
    size, elements = 0, 0
    tensors: list[Tensor] = []
    whole = bool(weights)
    largest = min(LARGEST_READ, MOST_HEADERS // max(1, len(weights)))
    for name in weights:
        found = _weight_file(os.path.join(full, name), name, largest)
        if isinstance(found, FileFault):
            faults.append(found)
            whole = False
        else:
            size += found.size
            elements = -1 if found.elements is None or elements < 0 else elements + found.elements
            tensors.extend(found.tensors or ())
    faults += _small_faults(full, names)
    return ModelFolder(
        shown,
        tuple(sorted(names)),
        config.data,
        adapter.data,
        index,
        weights,
        tuple(faults),
        size if whole else Unknown("not all of the weights are there"),
        elements if whole and elements > 0 else Unknown("not all of the weights have a safetensors header"),
        tuple(tensors) if whole and elements > 0 else Unknown("not all of the weights have a safetensors header"),
    )


def _names(full: str) -> frozenset[str]:
    found: list[str] = []
    with os.scandir(full) as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) >= MOST_NAMES:
                break
    return frozenset(found)


def _object(full: str, name: str, names: frozenset[str]) -> _Json:
    """A JSON object of the folder, or why it is none."""
    if name not in names:
        return _Json()
    path = os.path.join(full, name)
    try:
        if regular_size(path) is None:
            return _Json(fault=FileFault(name, "unreadable", "is no regular file"))
        with open(path, "rb") as file:
            raw = file.read(LARGEST_JSON + 1)
    except (OSError, ValueError) as error:
        return _Json(fault=unreadable(name, path, error))
    fault = foreign_start(raw[:_START], name, len(raw))
    if fault is not None or len(raw) > LARGEST_JSON:
        return _Json(fault=fault)
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _Json(fault=FileFault(name, "json", f"is no valid JSON: {_where(error)}"))
    if not isinstance(data, dict):
        return _Json(fault=FileFault(name, "json", "holds no JSON object"))
    return _Json(data)


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno}"
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it cannot be parsed"


def _chosen(
    full: str,
    names: frozenset[str],
    config: Mapping[str, object] | None,
    adapter: Mapping[str, object] | None,
) -> tuple[str | None, tuple[str, ...], FileFault | None]:
    """The index, the weight files that would be loaded by it or without it, and what is wrong with the index."""
    told = (config or {}).get("transformers_weights")
    if isinstance(told, str) and told:
        return _by_index(full, told, names) if told.endswith(".index.json") else (None, (told,), None)
    for name in _WHOLE:
        if _is_file(full, name, names):
            return None, (name,), None
        index = f"{name}.index.json"
        if _is_file(full, index, names):
            return _by_index(full, index, names)
    for name in _ADAPTER_WEIGHTS if adapter is not None else ():
        if name in names:
            return None, (name,), None
    return None, tuple(name for name in _WHOLE if name in names)[:1], None


def _is_file(full: str, name: str, names: frozenset[str]) -> bool:
    return name in names and os.path.isfile(os.path.join(full, name))


def _by_index(full: str, name: str, names: frozenset[str]) -> tuple[str | None, tuple[str, ...], FileFault | None]:
    found = _object(full, name, names)
    if found.data is None:
        return name, (), found.fault
    shards = found.data.get("weight_map")
    if not isinstance(shards, dict):
        return name, (), FileFault(name, "json", "has no weight_map")
    files = sorted({str(shard) for shard in shards.values() if isinstance(shard, str) and "\0" not in shard})
    return name, tuple(files[:MOST_SHARDS]), None


def _weight_file(path: str, name: str, largest: int) -> Header | FileFault:
    if name.endswith(".safetensors"):
        return read_header(path, name, largest)
    try:
        size = regular_size(path)
        if size is None:
            return FileFault(name, "unreadable", "is no regular file")
        with open(path, "rb") as file:
            start = file.read(_START)
            fault = foreign_start(start, name, size)
            if fault is None and start.startswith(b"PK\x03\x04"):
                file.seek(max(0, size - _ZIP_TAIL))
                if b"PK\x05\x06" not in file.read(_ZIP_TAIL):
                    fault = FileFault(name, "cut", "is cut off: the archive has no end record")
            return Header(size, None) if fault is None else fault
    except (OSError, ValueError) as error:
        return unreadable(name, path, error)


def _small_faults(full: str, names: frozenset[str]) -> Iterator[FileFault]:
    """Empty files, pointers and web pages in the place of the tokenizer's files and their like."""
    for name in _SMALL_FILES:
        if name not in names:
            continue
        path = os.path.join(full, name)
        try:
            size = regular_size(path)
            if size is None:
                continue
            with open(path, "rb") as file:
                fault = foreign_start(file.read(_START), name, size)
        except (OSError, ValueError) as error:
            fault = unreadable(name, path, error)
        if fault is not None:
            yield fault
