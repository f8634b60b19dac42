"""Python environments on disk: which interpreter a command would use and what is installed there.

Names of files and directories tell nearly all; nothing is run or imported. Verified against CPython
3.11's ``site.py`` (``pyvenv.cfg`` beside or above the executable decides), Debian's ``dist-packages`` and
conda's ``conda-meta``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from shutil import which

from mgpu_doctor.model.facts import PythonInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

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
_LONGEST_LINE = 512


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python environment as its files show it; ``sites`` in the order in which Python searches them."""

    python: PythonInfo
    sites: tuple[str, ...]
    packages: Mapping[str, str] | Unknown
    conda: Mapping[str, str] | Unknown


def commands_on_path(path: str | None = None) -> dict[str, str]:
    """Where the known launchers and interpreters lie on PATH, by name."""
    found = {name: which(name, path=path) for name in COMMANDS}
    return {name: place for name, place in found.items() if place}


def shebangs_of(paths: Iterable[str]) -> dict[str, str]:
    """The first line of each file that starts with ``#!``."""
    found = {}
    for path in paths:
        line = _shebang(path)
        if line is not None:
            found[path] = line
    return found


def _shebang(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            line = file.read(_LONGEST_LINE).partition(b"\n")[0]
    except OSError:
        return None
    return line.decode("utf-8", "replace").rstrip() if line.startswith(b"#!") else None


def interpreter_of(shebang: str) -> str | None:
    """The interpreter that a first line names; None when PATH decides (``/usr/bin/env python``) or it is no Python."""
    words = shebang[2:].split()
    if not words or "python" not in os.path.basename(words[0]):
        return None
    return words[0]


def find_environment(python: str | None, places: Mapping[str, str], variables: Mapping[str, str]) -> Environment:
    """The environment that a command would use.

    ``python`` names an interpreter (or the directory of an environment) and then decides. Otherwise it is the
    ``python`` on PATH, or, where that one has none of the frameworks, the interpreter of a launcher on PATH.
    """
    if python is not None:
        return read_environment(_executable(python), variables)
    candidates = [places[name] for name in ("python", "python3") if name in places]
    first = read_environment(candidates[0], variables) if candidates else _no_environment("no python is on PATH")
    if _has_framework(first):
        return first
    for name in _ENVIRONMENT_COMMANDS:
        line = _shebang(places[name]) if name in places else None
        interpreter = interpreter_of(line) if line is not None else None
        if interpreter is not None and interpreter not in candidates:
            other = read_environment(interpreter, variables)
            if _has_framework(other):
                return other
    return first


def _has_framework(environment: Environment) -> bool:
    packages = environment.packages
    return not isinstance(packages, Unknown) and any(name in packages for name in _FRAMEWORKS)


def _executable(python: str) -> str:
    if os.path.isdir(python):
        return os.path.join(python, "bin", "python")
    if os.sep not in python:
        return which(python) or python
    return os.path.abspath(python)


def _no_environment(reason: str) -> Environment:
    unknown = Unknown(reason)
    return Environment(PythonInfo(unknown, unknown, unknown), (), unknown, unknown)


def read_environment(executable: str, variables: Mapping[str, str]) -> Environment:
    """What is installed for an interpreter; Unknown parts where its files do not tell."""
    if not os.path.exists(executable):
        return _no_environment(f"{executable} does not exist")
    if _shebang(executable) is not None:
        chosen = _behind_pyenv(executable, variables)
        if chosen is not None and _shebang(chosen) is None:
            return read_environment(chosen, variables)
        return _no_environment(f"{executable} is a script that chooses the interpreter when it runs")
    configuration = _venv(executable)
    if configuration is not None:
        prefix, values = configuration
    else:
        prefix, values = os.path.dirname(os.path.dirname(os.path.realpath(executable))), {}
    short = _version_of(prefix, os.path.realpath(executable))
    sites = _sites(prefix, short, values, variables)
    version = values.get("version_info") or values.get("version") or short
    full = ".".join(version.split(".")[:3]) if isinstance(version, str) else version
    packages = _packages(sites) if sites else Unknown(f"no site-packages directory was found below {prefix}")
    info = PythonInfo(executable, prefix, full)
    return Environment(info, sites, packages, _conda(prefix))


def _behind_pyenv(shim: str, variables: Mapping[str, str]) -> str | None:
    """The interpreter that a shim of pyenv would run; None for other scripts.

    pyenv 2.4: PYENV_VERSION, else the nearest ``.python-version`` above the working directory, else ``version`` in
    pyenv's own directory; the first name in it counts.
    """
    root = os.path.dirname(os.path.dirname(shim))
    if os.path.basename(os.path.dirname(shim)) != "shims" or not os.path.isdir(os.path.join(root, "versions")):
        return None
    named = variables.get("PYENV_VERSION", "").replace(":", " ").split()
    place = os.getcwd()
    while not named:
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


def _first_words(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).split()
    except (OSError, UnicodeDecodeError):
        return []


def _venv(executable: str) -> tuple[str, dict[str, str]] | None:
    """The prefix and the ``pyvenv.cfg`` of a virtual environment, None outside any."""
    directory = os.path.dirname(os.path.abspath(executable))
    for place in (directory, os.path.dirname(directory)):
        try:
            with open(os.path.join(place, "pyvenv.cfg"), encoding="utf-8") as file:
                lines = file.read(65536).splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        pairs = (line.partition("=") for line in lines)
        return place, {key.strip().lower(): value.strip() for key, _, value in pairs}
    return None


def _version_of(prefix: str, real: str) -> str | Unknown:
    """Major and minor version: from the executable's name, else from the only library below the prefix."""
    named = re.fullmatch(r"python(\d+\.\d+)t?", os.path.basename(real))
    if named:
        return named.group(1)
    found = {
        match.group(1)
        for name in _names(os.path.join(prefix, "lib"))
        if (match := re.fullmatch(r"python(3\.\d+)t?", name)) and os.path.isdir(os.path.join(prefix, "lib", name))
    }
    return found.pop() if len(found) == 1 else Unknown(f"the files below {prefix} do not tell the version")


def _sites(
    prefix: str, version: str | Unknown, values: Mapping[str, str], variables: Mapping[str, str]
) -> tuple[str, ...]:
    if isinstance(version, Unknown):
        return ()
    wanted = [entry for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    system = not values or values.get("include-system-site-packages", "").lower() == "true"
    in_venv = bool(values)
    library = os.path.join("lib", f"python{version}", "site-packages")
    if in_venv:
        wanted += [os.path.join(prefix, library), os.path.join(prefix, library.replace("lib", "lib64", 1))]
        home = values.get("home")
        prefix = os.path.dirname(home) if home else prefix
    if system and not variables.get("PYTHONNOUSERSITE"):
        base = variables.get("PYTHONUSERBASE") or os.path.join(
            variables.get("HOME") or os.path.expanduser("~"), ".local"
        )
        wanted.append(os.path.join(base, library))
    if system:
        wanted += [
            os.path.join(prefix, "local", "lib", f"python{version}", "dist-packages"),
            os.path.join(prefix, library),
            os.path.join(prefix, "lib64", f"python{version}", "site-packages"),
            os.path.join(prefix, "lib", "python3", "dist-packages"),
        ]
    found: dict[str, str] = {}
    for place in wanted:
        if os.path.isdir(place):
            found.setdefault(os.path.realpath(place), place)
    return tuple(found.values())


def _packages(sites: Iterable[str]) -> dict[str, str]:
    """Normalised distribution name → version; the first directory in search order wins."""
    found: dict[str, str] = {}
    for site in sites:
        for entry in _names(site):
            stem, dot, kind = entry.rpartition(".")
            if not dot or kind not in {"dist-info", "egg-info", "egg-link"} or entry.startswith("~"):
                continue
            name, dash, rest = stem.partition("-")
            if dash and kind != "egg-link":
                # An egg's name goes on with the Python version: pkg-1.0-py3.11.egg-info.
                version: str | None = rest.partition("-")[0] if kind == "egg-info" else rest
            else:
                name, version = stem, _recorded_version(os.path.join(site, entry), kind)
            if version:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


def _recorded_version(path: str, kind: str) -> str | None:
    """The version inside metadata whose name does not tell it; None when it cannot be read.

    ``setup.py develop`` leaves ``pkg.egg-link`` with the project's directory in its first line, and the
    metadata as ``pkg.egg-info`` there (setuptools 65, command/develop.py).
    """
    from importlib_metadata import Distribution

    if kind == "egg-link":
        try:
            with open(path, encoding="utf-8") as file:
                project = file.readline(4096).strip()
        except (OSError, UnicodeDecodeError):
            return None
        stem = os.path.basename(path).removesuffix(".egg-link").replace("-", "_").lower()
        names = (name for name in _names(project) if name.lower().replace("-", "_") == f"{stem}.egg_info")
        inside = next(names, None)
        if inside is None:
            return None
        path = os.path.join(project, inside)
    try:
        version: str | None = Distribution.at(path).metadata["Version"]
    except (OSError, ValueError, KeyError):
        return None
    return version


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _conda(prefix: str) -> dict[str, str] | Unknown:
    """Conda's packages: ``{"pytorch": "1.9.0=py3.8_cpu_0"}``, from the names of its records."""
    directory = os.path.join(prefix, "conda-meta")
    if not os.path.isdir(directory):
        return Unknown(f"{prefix} is no conda environment")
    found = {}
    for entry in _names(directory):
        parts = entry.removesuffix(".json").rsplit("-", 2)
        if entry.endswith(".json") and len(parts) == 3:
            found[parts[0]] = f"{parts[1]}={parts[2]}"
    return found


def torch_cuda(environment: Environment) -> str | Unknown | None:
    """The CUDA version that the installed torch was built for; None for a build without CUDA.

    From torch/version.py (torch 1.13.1 to 2.13.0: ``cuda: Optional[str] = '12.4'`` or ``None``).
    """
    for site in environment.sites:
        try:
            with open(os.path.join(site, "torch", "version.py"), encoding="utf-8") as file:
                text = file.read(65536)
        except (OSError, UnicodeDecodeError):
            continue
        match = re.search(r"^cuda\s*(?::[^=\n]*)?=\s*(?:None|'([^'\n]*)'|\"([^\"\n]*)\")", text, re.MULTILINE)
        if match:
            return match.group(1) or match.group(2)
        return Unknown("torch/version.py does not tell")
    return Unknown("torch was not found")
