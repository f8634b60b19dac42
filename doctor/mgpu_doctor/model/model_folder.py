"""What lies in a folder that a model or an adapter is loaded from, and what of it cannot be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass, field


class Tensor(NamedTuple):
    """A tensor as a safetensors header describes it; ``dtype`` as there: ``BF16``, ``F8_E4M3``, ``I32``."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileFault:
    """Why a file cannot be loaded.

    ``kind``: ``missing``, ``empty``, ``pointer`` (git-lfs left its pointer in the file's place), ``cut`` (bytes are
    missing at its end), ``longer`` (more bytes than its header announces), ``page`` (a web page in its place),
    ``foreign`` (its beginning is not what such a file begins with), ``json`` (no valid JSON), ``unreadable``.
    ``detail`` completes the sentence "FILE …" with numbers.
    """

    name: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with a model, an adapter or a checkpoint, as far as names, sizes and headers tell.

    ``path`` is shown to people; ``names`` are all names in it, sorted. ``config`` and ``adapter`` are what
    ``config.json`` and ``adapter_config.json`` hold; None when there is no such file, or none that can be read.
    ``weights`` are the files that transformers would load, ``index`` the file that lists them. ``faults`` holds what is
    wrong with those files, and with ``config.json``, ``adapter_config.json``, ``tokenizer.json`` and their like.
    """

    path: str
    names: tuple[str, ...]
    config: Mapping[str, object] | None = None
    adapter: Mapping[str, object] | None = None
    index: str | None = None
    weights: tuple[str, ...] = ()
    faults: tuple[FileFault, ...] = ()
    weight_bytes: int | Unknown = field(default=Unknown("no weights were found"))
    """Size of the files in ``weights`` together, in bytes; Unknown when one of them is faulty."""
    parameters: int | Unknown = field(default=Unknown("no safetensors header was read"))
    """Number of elements of all tensors in ``weights``; Unknown unless every file is in the safetensors format."""
    tensors: tuple[Tensor, ...] | Unknown = field(default=Unknown("no safetensors header was read"))
    """The tensors of all files in ``weights``, in the files' order; Unknown where ``parameters`` is."""

    def has(self, *names: str) -> bool:
        """Whether one of these names is in the folder."""
        return any(name in self.names for name in names)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a path would be written to.

    ``existing`` is the path itself when it exists, else the nearest directory above it that does; ``kind`` is
    ``file`` or ``directory``, for that one. ``writable`` tells whether this user may create files there (for a
    file: write to it). ``free_gib`` is what is free for this user on its file system, in GiB.
    """

    existing: str
    kind: str
    is_whole: bool
    """Whether the path itself exists."""
    writable: bool | Unknown
    free_gib: float | Unknown
    mode: str | Unknown = field(default=Unknown("not looked at"))
    """As ``ls -l`` writes it."""
