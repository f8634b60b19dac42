"""The hub's cache on this machine: where it lies and which models and data sets can be used from it offline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from time import monotonic

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

MOST_REPOSITORIES = 5_000
DEADLINE_S = 3.0
"""A cache with more entries, or on a slow file system, is given up: half a list would say that models are missing."""

_OLD_CACHES = ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE")
"""Where transformers before 5.0 keeps models instead (transformers 4.40.0 to 4.52.4, utils/hub.py)."""

_KINDS = {"models": "", "datasets": "datasets/"}
_VARIABLE = pattern(r"\$(?:(\w+)|\{([^}]*)\})")


def cache_path(variables: Mapping[str, str]) -> str:
    """The directory of the cache under the variables in force.

    huggingface_hub 0.20.3 to 2.4.0, constants.py: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else ``hub`` below HF_HOME,
    else below ``huggingface`` in XDG_CACHE_HOME or ``~/.cache``. ``~`` and variables inside these values are followed
    as 0.33 and later do; 0.29 keeps the dollar sign.
    """
    home = variables.get("HF_HOME")
    if home is None:
        above = variables.get("XDG_CACHE_HOME")
        home = os.path.join(os.path.join(_home(variables), ".cache") if above is None else above, "huggingface")
    default = os.path.join(_expanded(home, variables), "hub")
    return _expanded(variables.get("HF_HUB_CACHE", variables.get("HUGGINGFACE_HUB_CACHE", default)), variables)


def _home(variables: Mapping[str, str]) -> str:
    return variables["HOME"] if "HOME" in variables else os.path.expanduser("~")


def _expanded(path: str, variables: Mapping[str, str]) -> str:
    """A path with its ``~`` and its variables followed; a variable that is not set stays (os.path.expandvars)."""
    if path == "~" or path.startswith("~/"):
        path = _home(variables) + path[1:]
    return _VARIABLE.sub(lambda match: variables.get(match.group(1) or match.group(2), match.group()), path)


def cached(variables: Mapping[str, str], deadline_s: float = DEADLINE_S) -> tuple[str, ...] | Unknown:
    """Models (``org/name``) and data sets (``datasets/org/name``) of which the cache holds a revision with files.

    The layout: ``models--org--name/snapshots/<commit>/…``, links into ``blobs`` (huggingface_hub, guide "Understand
    caching"). Whether all files of a model are there is not looked at.
    """
    until = monotonic() + deadline_s
    places = [cache_path(variables)]
    places += [_expanded(variables[name], variables) for name in _OLD_CACHES if variables.get(name)]
    found: set[str] = set()
    for place in dict.fromkeys(places):
        try:
            entries = os.scandir(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return Unknown(f"the hub's cache cannot be read: {getattr(error, 'strerror', None) or error}")
        with entries:
            for seen, entry in enumerate(entries):
                if seen >= MOST_REPOSITORIES or monotonic() > until:
                    return Unknown("the hub's cache is too large, or too slow to be read")
                name = _repository(entry.name)
                if name is not None and name not in found and _is_usable(entry.path):
                    found.add(name)
    return tuple(sorted(found))


def _repository(entry: str) -> str | None:
    """The repository whose folder has this name: ``models--org--name``; None for any other folder."""
    kind, *parts = entry.split("--")
    if kind not in _KINDS or not parts or not all(parts):
        return None
    return _KINDS[kind] + "/".join(parts)


def _is_usable(folder: str) -> bool:
    """Whether a revision holds a file that is really there; a link whose blob was deleted is not."""
    return any(
        os.path.exists(entry.path) for revision in _entries(f"{folder}/snapshots") for entry in _entries(revision.path)
    )


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError:
        return
