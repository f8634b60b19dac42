"""Python environments on disk: which interpreter a command would use, and where that one looks for packages.

Names and contents of files tell; nothing is run or imported. Verified against CPython 3.11's ``site.py``
(``pyvenv.cfg`` beside or above the executable decides), Debian's ``dist-packages``, Fedora's /usr/local and conda.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from shutil import which

from mgpu_doctor.collect.regular import read_text
from mgpu_doctor.model.facts import PythonInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field

COMMANDS = (
    "python",
    "python3",
    "accelerate",
    "accelerate-launch",
    "torchrun",
    "deepspeed",
    "ds",
    "llamafactory-cli",
    "lmf",
    "swift",
    "srun",
    "mpirun",
    "mpiexec",
    "nvcc",
    "uv",
    "conda",
)
"""Commands whose place on PATH is looked up."""

_ENVIRONMENT_COMMANDS = ("accelerate", "torchrun", "deepspeed", "llamafactory-cli", "swift")
_FRAMEWORKS = ("torch", "accelerate", "deepspeed", "transformers", "llamafactory")
_INTERPRETER_NAME = pattern(r"(?:python|pypy)(\d+(?:\.\d+)?t?)?(?:\.exe)?")
_LARGEST_SCRIPT = 8192
_LARGEST_TEXT = 65536


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter as its files show it.

    ``sites`` are the directories that it imports from, in its order (the standard library's left out);
    ``added`` those that ``.pth`` files in them add; ``names`` what lies in each of both, read once. Without any,
    ``reason`` says why.
    """

    python: PythonInfo
    sites: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reason: str = ""


def commands_on_path(path: str | None = None) -> dict[str, str]:
    """Where the known launchers and interpreters lie on PATH, by name."""
    found = {name: which(name, path=path) for name in COMMANDS}
    return {name: place for name, place in found.items() if place}


def path_of_user(variables: Mapping[str, str], own: str | None = None) -> str | None:
    """PATH as the user has it; None when it is not set.

    ``uvx`` puts the environment that it made for this program first on PATH, without VIRTUAL_ENV (uv 0.13.9, seen by
    running it): nobody's command would run there, so it is left out. ``own`` is this program's interpreter.
    """
    path = variables.get("PATH")
    own = own or sys.executable
    folder = os.path.dirname(own)
    first, _, rest = (path or "").partition(os.pathsep)
    if not rest or not own or os.path.realpath(first) != os.path.realpath(folder):
        return path
    prefix, values = _venv(own) or ("", {})
    if "uv" not in values or variables.get("VIRTUAL_ENV") == prefix:
        return path
    return path if has_framework(read_interpreter(own, variables)) else rest


def shebangs_of(paths: Iterable[str]) -> dict[str, str]:
    """The first line of each file that starts with ``#!``."""
    found = {}
    for path in paths:
        line = _shebang(path)
        if line is not None:
            found[path] = line
    return found


def _shebang(path: str) -> str | None:
    text = _head(path)
    return text.partition("\n")[0].rstrip() if text is not None and text.startswith("#!") else None


def _head(path: str) -> str | None:
    """The beginning of a file as text, None when it cannot be read."""
    return read_text(path, _LARGEST_SCRIPT)


def interpreter_of(shebang: str) -> str | None:
    """The interpreter that a first line names; None when PATH decides (``/usr/bin/env python``) or it is no Python."""
    words = shebang[2:].split()
    if not words or "python" not in os.path.basename(words[0]):
        return None
    return words[0]


def launcher_interpreter(path: str) -> str | None:
    """The interpreter that a launcher's file names; None when it names none.

    Where the interpreter's path is too long for a first line or holds a blank, pip and uv write a shell line that
    runs it: ``#!/bin/sh``, then ``'''exec' "/a b/python" "$0" "$@"`` (distlib 0.3.6, scripts.py ``_get_shebang``).
    """
    text = _head(path)
    if text is None or not text.startswith("#!"):
        return None
    first, _, rest = text.partition("\n")
    if first.strip() in ("#!/bin/sh", "#!/usr/bin/env sh"):
        match = re.match(r"'''exec' (?:\"([^\"\n]+)\"|'([^'\n]+)'|(\S+)) \"\$0\" \"\$@\"", rest)
        found = next((group for group in match.groups() if group), None) if match else None
        return found if found is not None and os.path.isabs(found) else None
    return interpreter_of(first)


def find_interpreter(
    python: str | Unknown | None, places: Mapping[str, str], variables: Mapping[str, str]
) -> Interpreter:
    """The interpreter that a command would use.

    ``python`` names one (see :func:`named_interpreter`) and then decides; Unknown says why it cannot be told.
    Otherwise it is the ``python`` on PATH, or, where that one has none of the frameworks, the interpreter of a
    launcher on PATH.
    """
    if isinstance(python, Unknown):
        return _nothing(python.reason)
    if python is not None:
        return read_interpreter(python, variables)
    candidates = [places[name] for name in ("python", "python3") if name in places]
    first = read_interpreter(candidates[0], variables) if candidates else _nothing("no python is on PATH")
    if has_framework(first):
        return first
    for name in _ENVIRONMENT_COMMANDS:
        interpreter = launcher_interpreter(places[name]) if name in places else None
        if interpreter is not None and interpreter not in candidates:
            other = read_interpreter(interpreter, variables)
            if has_framework(other):
                return other
    return first


def has_framework(interpreter: Interpreter) -> bool:
    """Whether one of the frameworks is installed for it, as far as names of directories tell."""
    wanted = tuple(f"{name}-" for name in _FRAMEWORKS)
    return any(
        name.lower().startswith(wanted) and name.endswith((".dist-info", ".egg-info"))
        for names in interpreter.names.values()
        for name in names
    )


def named_interpreter(python: str, path: str | None = None) -> str | Unknown:
    """The executable that a user means by an interpreter, the directory of an environment, or a name on PATH.

    Unknown, with what is wrong, where there is no such.
    """
    if os.path.isdir(python):
        for inside in ("bin/python", "bin/python3", "python", "Scripts/python.exe"):
            place = os.path.abspath(os.path.join(python, inside))
            if os.path.isfile(place):
                return place
            if os.path.islink(place):
                return _dangling(place)
        if os.path.isfile(os.path.join(python, ".venv", "bin", "python")):
            return Unknown(f"{python} is no Python environment, but {os.path.join(python, '.venv')} is one")
        return Unknown(f"{python} is no Python environment: there is no bin/python in it")
    if os.sep not in python:
        found = which(python, path=path)
        return os.path.abspath(found) if found else Unknown(f"there is no {python} on PATH, and no such directory here")
    place = os.path.abspath(os.path.expanduser(python))
    if os.path.isfile(place):
        return place if os.access(place, os.X_OK) else Unknown(f"{python} is not executable")
    if os.path.islink(place):
        return _dangling(place)
    return Unknown(f"{python} does not exist")


def _dangling(place: str) -> Unknown:
    try:
        target = os.readlink(place)
    except OSError:
        target = "something"
    return Unknown(f"{place} is a link to {target}, and that leads nowhere: the interpreter below it has been removed")


def _nothing(reason: str) -> Interpreter:
    unknown = Unknown(reason)
    return Interpreter(PythonInfo(unknown, unknown, unknown), reason=reason)


def read_interpreter(executable: str, variables: Mapping[str, str]) -> Interpreter:
    """Where an interpreter looks for packages; a reason where its files do not tell."""
    if not os.path.exists(executable):
        return _nothing(_dangling(executable).reason if os.path.islink(executable) else f"{executable} does not exist")
    if _shebang(executable) is not None:
        chosen = _behind_pyenv(executable, variables) or wrapped(executable)
        if chosen is not None and _shebang(chosen) is None:
            return read_interpreter(chosen, variables)
        return _nothing(f"{executable} is a script that chooses the interpreter when it runs")
    real = os.path.realpath(executable)
    if _INTERPRETER_NAME.fullmatch(os.path.basename(real)) is None:
        # A tool's shim (mise) or a multi-call program under the name of python.
        return _nothing(f"{executable} leads to {real}, which chooses the interpreter when it runs")
    prefix, values = _venv(executable) or (_home(real, variables), {})
    library = _library_of(prefix, real, values)
    if isinstance(library, Unknown):
        return Interpreter(PythonInfo(executable, prefix, library), reason=library.reason)
    sites = _sites(prefix, library, values, variables)
    info = PythonInfo(executable, prefix, _full_version(prefix, library, values))
    reason = "" if sites else f"no site-packages directory was found below {prefix}"
    names = {site: names_in(site) for site in sites}
    added = _added(names)
    names.update((place, names_in(place)) for place in added)
    return Interpreter(info, sites, added, names, reason)


def _home(real: str, variables: Mapping[str, str]) -> str:
    """The prefix outside a virtual environment: PYTHONHOME, else above the executable."""
    return variables.get("PYTHONHOME", "").partition(os.pathsep)[0] or os.path.dirname(os.path.dirname(real))


def _behind_pyenv(shim: str, variables: Mapping[str, str]) -> str | None:
    """The interpreter that a shim of pyenv would run; None for other scripts.

    pyenv 2.4: PYENV_VERSION, else the nearest ``.python-version`` above the working directory, else ``version`` in
    pyenv's own directory; the first name in it counts.
    """
    root = os.path.dirname(os.path.dirname(shim))
    if os.path.basename(os.path.dirname(shim)) != "shims" or not os.path.isdir(os.path.join(root, "versions")):
        return None
    named = variables.get("PYENV_VERSION", "").replace(":", " ").split()
    place = _working_directory()
    while not named and place:
        named = _first_words(os.path.join(place, ".python-version"))
        above = os.path.dirname(place)
        if above == place:
            break
        place = above
    named = named or _first_words(os.path.join(root, "version"))
    if not named or os.sep in named[0]:
        return None
    found = os.path.join(root, "versions", named[0], "bin", os.path.basename(shim))
    return found if os.path.exists(found) else None


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def wrapped(script: str) -> str | None:
    """The program that a shell script starts and does nothing else; None for anything else."""
    text = _head(script)
    if text is None or not text.startswith("#!"):
        return None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        return None
    match = re.fullmatch(r"exec (?:\"(/[^\"$`]+)\"|'(/[^']+)'|(/[^\s\"'$`]+)) \"\$@\"", lines[0])
    found = next((group for group in match.groups() if group), None) if match else None
    return found if found is not None and os.path.exists(found) else None


def _first_words(path: str) -> list[str]:
    return (read_text(path, 4096) or "").split()


def _venv(executable: str) -> tuple[str, dict[str, str]] | None:
    """The prefix and the ``pyvenv.cfg`` of a virtual environment, None outside any."""
    directory = os.path.dirname(os.path.abspath(executable))
    for place in (directory, os.path.dirname(directory)):
        text = read_text(os.path.join(place, "pyvenv.cfg"), _LARGEST_TEXT)
        if text is None:
            continue
        pairs = (line.partition("=") for line in text.splitlines())
        return place, {key.strip().lower(): value.strip() for key, _, value in pairs}
    return None


def _library_of(prefix: str, real: str, values: Mapping[str, str]) -> str | Unknown:
    """The name of the directory of libraries, ``python3.11`` (``python3.13t`` without the interpreter's lock).

    From the only such directory below the prefix, else from the executable's name or the ``pyvenv.cfg``.
    """
    found = {
        name
        for folder in ("lib", "lib64")
        for name in names_in(os.path.join(prefix, folder))
        if re.fullmatch(r"python3\.\d+t?", name)
    }
    named = re.fullmatch(r"(python\d+\.\d+t?)", os.path.basename(real))
    if named and (not found or named[1] in found or not values):
        return named[1]
    if len(found) == 1:
        return found.pop()
    written = re.match(r"\d+\.\d+", values.get("version_info") or values.get("version") or "")
    if written and (not found or f"python{written[0]}" in found):
        return f"python{written[0]}"
    return Unknown(f"the files below {prefix} do not tell the version")


def _full_version(prefix: str, library: str, values: Mapping[str, str]) -> str:
    """The version, with its third number where ``pyvenv.cfg`` or the C header beside the interpreter tells it."""
    short = library.removeprefix("python").rstrip("t")
    written = values.get("version_info") or values.get("version") or ""
    if not written:
        header = read_text(os.path.join(prefix, "include", library, "patchlevel.h"), _LARGEST_TEXT)
        match = re.search(r'#define PY_VERSION\s+"([^"]+)"', header or "")
        written = match[1].rstrip("+") if match else ""
    full = ".".join(written.split(".")[:3])
    return full if full == short or full.startswith(f"{short}.") else short


def _sites(prefix: str, library: str, values: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str, ...]:
    wanted = [os.path.abspath(entry) for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if entry]
    in_venv = bool(values)
    system = not in_venv or values.get("include-system-site-packages", "").lower() == "true"
    if in_venv:
        wanted += _below(prefix, library)
        home = values.get("home")
        prefix = os.path.dirname(home) if home else prefix
    if system and not variables.get("PYTHONNOUSERSITE"):
        home = variables.get("HOME") or os.path.expanduser("~")
        base = variables.get("PYTHONUSERBASE") or os.path.join(home, ".local")
        wanted.append(os.path.join(os.path.expanduser(base), "lib", library, "site-packages"))
    if system:
        if prefix == "/usr":
            wanted += _below("/usr/local", library)
        wanted.append(os.path.join(prefix, "local", "lib", library, "dist-packages"))
        wanted += _below(prefix, library)
        wanted += [
            os.path.join(prefix, "lib", "python3", "dist-packages"),
            os.path.join(prefix, "lib", library, "dist-packages"),
        ]
    return _each_once(place for place in wanted if os.path.isdir(place))


def _below(prefix: str, library: str) -> list[str]:
    return [os.path.join(prefix, folder, library, "site-packages") for folder in ("lib", "lib64")]


def _each_once(places: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for place in places:
        found.setdefault(os.path.realpath(place), place)
    return tuple(found.values())


def _added(names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The directories that ``.pth`` files add, as CPython's ``site.addpackage`` does; lines of code are left out."""
    found = []
    for site, inside in names.items():
        for name in sorted(name for name in inside if name.endswith(".pth") and not name.startswith(".")):
            lines = (read_text(os.path.join(site, name), _LARGEST_TEXT) or "").splitlines()
            for line in lines:
                text = line.rstrip()
                if text and not text.startswith(("#", "import ", "import\t")) and "\0" not in text:
                    found.append(os.path.join(site, text))
    known = {os.path.realpath(site) for site in names}
    return tuple(place for place in _each_once(found) if os.path.isdir(place) and os.path.realpath(place) not in known)


def names_in(directory: str) -> list[str]:
    """The names in a directory, empty when it cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []
