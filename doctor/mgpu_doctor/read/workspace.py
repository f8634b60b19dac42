"""The files around a command: read where the command is meant for this place, unknown elsewhere."""

from __future__ import annotations

import os
import stat

from mgpu_doctor.model.facts import Facts, PathInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import ModelFolder, Storage
from mgpu_doctor.model.program import ConfigFile, Program
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Source

LARGEST = 5 * 1024 * 1024
"""Bytes above which a file is not read: no script or configuration comes near."""

MOST_NAMES = 10_000

_DAMAGE = (" is a directory", " is binary", " is not UTF-8")
"""How reasons end that lie with the file, so that no reader of a configuration takes it."""

_HERE = "this machine"
_LINT = Unknown("only the text is judged: where it will run is not known")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a path leads: ``shown`` to people, ``full`` to the system; ``certain`` when a missing file is missing."""

    shown: str
    full: str
    certain: bool


class LocalWorkspace:
    """Answers from the file system below (or relative to) ``root``, and from the facts of another machine.

    ``facts`` decide how far the file system counts. About this machine every path is looked at.
    About another machine, or none, relative paths are looked at in ``root``, absolute ones only in the
    facts. With ``judge_only_text`` a relative path may lead anywhere: what is found is read,
    what is not found stays unknown, unless the text itself changes to a directory below ``root`` that
    holds files of that kind.
    """

    def __init__(self, root: str, facts: Facts, *, judge_only_text: bool = False) -> None:
        self._root = root
        self._facts = facts
        self._only_text = judge_only_text
        self._kinds: dict[str, str | Unknown] = {}
        self._texts: dict[str, str | Unknown] = {}
        self._programs: dict[str, Program | Unknown] = {}
        self._configs: dict[tuple[str, str, str], ConfigFile] = {}
        self._folders: dict[str, ModelFolder | Unknown] = {}

    def kind(self, path: str, directory: str | Unknown | None = None) -> str | Unknown:
        """``file``, ``directory`` or ``missing``."""
        told = self._told(path)
        if told is not None:
            return told
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        if not place.certain:
            return _LINT
        seen = self._look(place.full)
        return _LINT if seen == "missing" and not self._would_be_here(place) else seen

    def read(self, path: str, kind: str, directory: str | Unknown | None = None) -> Source | Unknown:
        """A text file as a source of that kind; Unknown with the reason when it cannot be read."""
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        text = self._text(place)
        return text if isinstance(text, Unknown) else Source(place.shown, text, kind, place.full)

    def names(self, path: str, directory: str | Unknown | None = None) -> tuple[str, ...] | Unknown:
        """The names in a directory, sorted."""
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        if not place.certain:
            return _LINT
        found: list[str] = []
        try:
            with os.scandir(place.full) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) >= MOST_NAMES:
                        break
        except (OSError, ValueError) as error:
            return Unknown(f"{place.shown} cannot be listed: {_say(error)}")
        return tuple(sorted(found))

    def program(self, path: str, directory: str | Unknown | None = None) -> Program | Unknown:
        """What a Python file shows."""
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        if place.full not in self._programs:
            source = self.read(path, "python", directory)
            if isinstance(source, Unknown):
                self._programs[place.full] = source
            else:
                from mgpu_doctor.read.program import read_program

                self._programs[place.full] = read_program(source)
        return self._programs[place.full]

    def config(self, path: str, role: str, directory: str | Unknown | None = None) -> ConfigFile:
        """A YAML or JSON file in a role; never raises, says in the result what is wrong."""
        from mgpu_doctor.read.config import read_config, unread_config

        place = self._place(path, directory)
        if isinstance(place, Unknown):
            told = self._told(path)
            exists: bool | Unknown = place if told is None or isinstance(told, Unknown) else told != "missing"
            return unread_config(path, role, place.reason, exists, unseen=True)
        text = self._text(place)
        if not isinstance(text, Unknown):
            key = (place.full, place.shown, role)
            if key not in self._configs:
                self._configs[key] = read_config(Source(place.shown, text, "config", place.full), role)
            return self._configs[key]
        seen = self._look(place.full)
        if seen == "missing":
            is_missing = place.certain and self._would_be_here(place)
            return unread_config(place.shown, role, text.reason, False if is_missing else _LINT)
        exists = seen if isinstance(seen, Unknown) else True
        return unread_config(place.shown, role, text.reason, exists, unseen=not text.reason.endswith(_DAMAGE))

    def model_folder(self, path: str, directory: str | Unknown | None = None) -> ModelFolder | Unknown:
        """What lies in a model's folder; Unknown when it is none, or cannot be looked at."""
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        if not place.certain:
            return _LINT
        if self._look(place.full) != "directory":
            return Unknown(f"{place.shown} is no directory that can be looked at")
        if place.full not in self._folders:
            from mgpu_doctor.read.model_folder import read_model_folder

            self._folders[place.full] = read_model_folder(place.full, place.shown)
        return self._folders[place.full]

    def storage(self, path: str, directory: str | Unknown | None = None) -> Storage | Unknown:
        """Where something would be written to; Unknown where the machine is not this one and its facts do not tell."""
        if self._facts.origin != _HERE or self._only_text:
            told = _told_storage(path, self._facts)
            return Unknown(_elsewhere(path)) if told is None else told
        place = self._place(path, directory)
        if isinstance(place, Unknown):
            return place
        from mgpu_doctor.read.storage import look_at_storage

        return look_at_storage(os.path.abspath(place.full))

    def resolve(self, path: str) -> str | Unknown:
        """An absolute path with its links followed, as this machine has them; Unknown for any other."""
        if self._facts.origin != _HERE or not os.path.isabs(path):
            return Unknown(_elsewhere(path))
        return os.path.realpath(path)

    def _place(self, path: str, directory: str | Unknown | None) -> _Place | Unknown:
        if not path or "\0" in path:
            return Unknown("it is no path")
        here = self._facts.origin == _HERE and not self._only_text
        if path.startswith("~"):
            full = os.path.expanduser(path) if here else path
            return _Place(path, full, True) if here and full != path else Unknown(_elsewhere(path))
        if not os.path.isabs(path):
            if isinstance(directory, Unknown):
                return directory
            if directory:
                return self._inside(path, directory, here)
            return _Place(path, os.path.join(self._root, path), not self._only_text)
        return _Place(path, path, True) if here else Unknown(_elsewhere(path))

    def _inside(self, path: str, directory: str, here: bool) -> _Place | Unknown:
        """A relative path behind a ``cd``."""
        joined = os.path.normpath(os.path.join(directory, path))
        if os.path.isabs(directory) or directory.startswith("~"):
            if not here:
                told = self._told(joined)
                return Unknown(_elsewhere(joined)) if told is None or isinstance(told, Unknown) else Unknown("not read")
            return _Place(joined, os.path.expanduser(joined), True)
        above = os.path.normpath(directory).startswith("..")
        known = os.path.isdir(os.path.join(self._root, directory)) and not (above and self._only_text)
        if not known and not self._only_text:
            return Unknown(f"there is no directory {directory} to change to")
        return _Place(joined, os.path.join(self._root, joined), known or not self._only_text)

    def _would_be_here(self, place: _Place) -> bool:
        """Whether a missing file is missing for certain: for a text alone, files of its kind lie in that directory."""
        if not self._only_text:
            return True
        directory, name = os.path.split(place.full)
        try:
            return any(other.endswith(os.path.splitext(name)[1]) for other in os.listdir(directory))
        except OSError:
            return False

    def _told(self, path: str) -> str | Unknown | None:
        """What the facts of the machine say about a path; None when they say nothing."""
        paths, models = self._facts.paths, self._facts.models
        for key in {path, path.rstrip("/") or "/", path.rstrip("/") + "/"}:
            if not isinstance(paths, Unknown) and key in paths:
                return _kind_of(paths[key])
            if not isinstance(models, Unknown) and key in models and path.startswith(("/", "~", "./", "../")):
                return "directory"
        return None

    def _look(self, full: str) -> str | Unknown:
        if full not in self._kinds:
            try:
                mode = os.stat(full).st_mode
            except (FileNotFoundError, NotADirectoryError):
                self._kinds[full] = "missing"
            except (OSError, ValueError) as error:
                self._kinds[full] = Unknown(f"it cannot be looked at: {_say(error)}")
            else:
                self._kinds[full] = "directory" if stat.S_ISDIR(mode) else "file"
        return self._kinds[full]

    def _text(self, place: _Place) -> str | Unknown:
        if place.full not in self._texts:
            self._texts[place.full] = _read_text(place)
        return self._texts[place.full]


def _read_text(place: _Place) -> str | Unknown:
    shown = place.shown
    try:
        status = os.stat(place.full)
        if not stat.S_ISREG(status.st_mode):
            return Unknown(f"{shown} is {'a directory' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
        if status.st_size > LARGEST:
            return Unknown(f"{shown} is larger than {LARGEST >> 20} MiB")
        with open(place.full, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return Unknown(f"there is no file {shown}")
    except (OSError, ValueError) as error:
        return Unknown(f"{shown} cannot be read: {_say(error)}")
    if b"\0" in data:
        return Unknown(f"{shown} is binary")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Unknown(f"{shown}:{line} is not UTF-8")


def _told_storage(path: str, facts: Facts) -> Storage | None:
    """What the facts of a machine say about a path or the nearest directory above it; None when they say nothing."""
    if isinstance(facts.paths, Unknown):
        return None
    known = {name.rstrip("/") or "/": info for name, info in facts.paths.items()}
    at = path.rstrip("/") or "/"
    while at not in known:
        above = os.path.dirname(at)
        if above in (at, ""):
            return None
        at = above
    info = known[at]
    is_missing = info.kind == "missing"
    kind = "directory" if is_missing else _kind_of(info)
    writable = info.writable
    if isinstance(writable, Unknown) and isinstance(info.mode, str) and "w" not in info.mode:
        # Whose directory it is, is not known: only without any right to write it is sure, and root needs none.
        writable = Unknown("root may write anywhere") if facts.variable("USER") == "root" else False
    return Storage(
        at,
        "directory" if isinstance(kind, Unknown) else kind,
        at == (path.rstrip("/") or "/") and not is_missing,
        writable,
        info.free_gib,
        info.mode,
    )


def _kind_of(info: PathInfo) -> str | Unknown:
    if not isinstance(info.kind, Unknown):
        return info.kind
    if isinstance(info.mode, Unknown):
        return Unknown("the facts say that it exists, but not what it is")
    return "directory" if info.mode.startswith("d") else "file"


def _elsewhere(path: str) -> str:
    return f"{path} is on the machine that the command is meant for"


def _say(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
