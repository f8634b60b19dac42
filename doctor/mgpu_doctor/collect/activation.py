"""Which interpreter commands themselves choose: a path, ``activate``, ``conda run``, ``uv run``, PATH.

What ``uv run`` takes was seen by running uv 0.13.9 offline in projects, workspaces and plain folders, with and without
VIRTUAL_ENV, CONDA_PREFIX and UV_PROJECT_ENVIRONMENT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from shutil import which

from mgpu_doctor.collect.interpreter import launcher_interpreter, named_interpreter
from mgpu_doctor.collect.regular import read_text
from mgpu_doctor.model.command import Command, Word, Wrapper
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

_CONDAS = frozenset({"conda", "mamba", "micromamba"})
_LAUNCHERS = frozenset(
    {
        "accelerate",
        "accelerate-launch",
        "torchrun",
        "deepspeed",
        "ds",
        "llamafactory-cli",
        "lmf",
        "swift",
        "vllm",
        "axolotl",
    }
)
_INTERPRETER = pattern(r"(?:python|pypy)[\d.]*t?")
_LOADING = frozenset({"load", "add", "swap", "switch", "restore", "try-load"})
_MODULE_COMMANDS = _LOADING | frozenset(
    {"purge", "unload", "rm", "del", "list", "avail", "av", "spider", "show", "use", "unuse", "save", "help", "reset"}
)
_NO_PYTHON = pattern(
    r"(?:.*/)?(?:cuda|cudnn|nccl|gcc|gnu|openmpi|mpich|intel-?mpi|cmake|git|slurm|ninja|ucx|libfabric|aws-ofi-nccl|libaio"
    r"|ffmpeg|singularity|apptainer|java|zlib|hwloc|proxy)(?:toolkit)?(?:[-_/.\d].*)?$",
    re.IGNORECASE,
)
"""Names of modules that bring no interpreter."""

_MAKE_ENVIRONMENTS = frozenset({"venv", "virtualenv", "pip", "ensurepip"})
_ELSEWHERE = pattern(
    r"(?:docker|podman|nerdctl|nvidia-docker|docker-compose|singularity|apptainer|enroot|kubectl|oc|ssh)\b"
)
_OTHER_TOOLS = frozenset(
    {"poetry run", "pipenv run", "pdm run", "hatch run", "pixi run", "rye run", "uvx", "uv tool run", "pipx run"}
)
_LARGEST_TEXT = 1024 * 1024

Choice = str | Unknown | None
"""An interpreter's path; Unknown where the choice cannot be told; None where nothing but PATH decides."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What commands choose for themselves; None stands for what they inherit.

    ``path`` is the PATH on which they find programs, ``toolkit`` why the CUDA toolkit is not the one that the
    inherited environment names.
    """

    python: Choice = None
    path: str | None = None
    toolkit: Unknown | None = None


def chosen_interpreter(commands: Iterable[Command], variables: Mapping[str, str], directory: str) -> Chosen:
    """The interpreter that the commands choose for themselves; none where they leave it to PATH.

    Only commands that start Python count. Where they choose different ones, it cannot be told which is meant.
    ``directory`` is where the text starts, ``variables`` the environment that it starts with. An environment that is
    activated comes first on PATH; an interpreter or launcher that is called by its path does not change PATH.
    """
    inherited = variables.get("PATH", os.defpath)
    default = which("python", path=inherited) or which("python3", path=inherited)
    active: Choice = None
    found: dict[str, Choice] = {}
    activated = False
    path = None
    toolkit = None
    for command in commands:
        place = _directory(command, directory)
        changed = _activated(command, place, variables)
        toolkit = _other_toolkit(command) if toolkit is None else toolkit
        if changed is not _UNCHANGED:
            active = Unknown("the environment is activated only under a condition") if command.conditional else changed
            if _same(changed, default):
                active = None
        elif _starts_python(command):
            choice = _choice(command, place, variables, active)
            choice = None if _same(choice, default) else choice
            found[str(choice)] = choice
            activated = activated or not _by_own_path(command)
            path = _set(command, "PATH") or path
    if len(found) > 1:
        return Chosen(Unknown("the commands use different environments"), None, toolkit)
    python = next(iter(found.values()), None)
    if isinstance(python, str):
        path = path or inherited
        path = os.pathsep.join((os.path.dirname(python), path)) if activated else path
    return Chosen(python, path, toolkit)


def _set(command: Command, name: str) -> str | None:
    """A variable's text where the text itself sets it and it is known."""
    variable = command.variable(name)
    return variable.text if variable is not None and variable.scope != "inherited" else None


def _other_toolkit(command: Command) -> Unknown | None:
    """Why a command may find another CUDA toolkit than what is inherited tells."""
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        variable = command.variable(name)
        if variable is not None and variable.scope != "inherited" and (name != "PATH" or variable.text is None):
            return Unknown(f"the commands set {name}")
    if command.name in ("module", "ml"):
        for text in (word.value for word in command.words[1:]):
            if text is None or re.search(r"cuda|nvhpc|toolkit", text, re.IGNORECASE):
                return Unknown(f"{command.name} loads {text or 'something'} when it runs")
    return None


def _by_own_path(command: Command) -> bool:
    return "/" in (command.name or "") and not any(_decides(wrapper) for wrapper in command.wrappers)


_UNCHANGED = Unknown("no activation")


def _same(choice: Choice, default: str | None) -> bool:
    if not isinstance(choice, str) or default is None:
        return False
    folders = (os.path.realpath(os.path.dirname(os.path.abspath(path))) for path in (choice, default))
    return len(set(folders)) == 1


def _directory(command: Command, directory: str) -> str | None:
    inside = command.directory
    if isinstance(inside, Unknown):
        return None
    return os.path.abspath(os.path.join(directory, inside or "."))


def _starts_python(command: Command) -> bool:
    if any(_decides(wrapper) for wrapper in command.wrappers):
        return True
    if not command.words:
        return False
    name = command.name
    if name is None:
        return "python" in command.words[0].written.lower()
    base = name.rpartition("/")[2]
    if base in _LAUNCHERS:
        return True
    texts = [word.value for word in command.words[1:3]]
    making = len(texts) == 2 and texts[0] == "-m" and texts[1] in _MAKE_ENVIRONMENTS
    return _INTERPRETER.fullmatch(base) is not None and not making


def _decides(wrapper: Wrapper) -> bool:
    name = wrapper.name
    return (
        name in _OTHER_TOOLS
        or name == "uv run"
        or name.partition(" ")[0] in _CONDAS
        or _ELSEWHERE.match(name) is not None
    )


def _activated(command: Command, place: str | None, variables: Mapping[str, str]) -> Choice:
    """What a command activates, None for nothing more, ``_UNCHANGED`` when it is about something else."""
    texts = [word.value for word in command.words]
    name = command.name
    if name in ("source", ".") and len(texts) > 1:
        return _sourced(command.words[1:], place, variables)
    if name in ("module", "ml"):
        loaded = _loaded(name, texts[1:])
        return Unknown(f"{name} loads {loaded} when it runs") if loaded else _UNCHANGED
    if name in _CONDAS and len(texts) > 1 and texts[1] in ("activate", "deactivate"):
        if texts[1] == "deactivate":
            return None
        named = [word for word in command.words[2:] if not (word.value or "").startswith("-")]
        return _conda_interpreter(named[0] if named else None, place, variables)
    return None if name == "deactivate" else _UNCHANGED


def _loaded(name: str, texts: list[str | None]) -> str | None:
    """The module that an HPC cluster's ``module load`` or ``ml`` loads and that may hold a Python; None without any."""
    if name == "module" or (texts and texts[0] in _MODULE_COMMANDS):
        if not texts or texts[0] not in _LOADING:
            return None
        texts = texts[1:]
    for text in texts:
        if text is None:
            return "something"
        if not text.startswith("-") and _NO_PYTHON.match(text) is None:
            return text
    return None


def _sourced(words: tuple[Word, ...], place: str | None, variables: Mapping[str, str]) -> Choice:
    path = words[0].value
    if path == "activate":
        return _conda_interpreter(words[1] if len(words) > 1 else None, place, variables)
    if path is None:
        written = words[0].written
        return (
            Unknown(f"which environment is {written} cannot be told") if written.endswith("/activate") else _UNCHANGED
        )
    if not path.endswith("bin/activate"):
        return _UNCHANGED
    top = _resolved(os.path.dirname(os.path.dirname(path)) or ".", place)
    if isinstance(top, Unknown):
        return top
    if len(words) > 1 and os.path.isdir(os.path.join(top, "conda-meta")):
        return _conda_interpreter(words[1], place, {**variables, "MAMBA_ROOT_PREFIX": top})
    return named_interpreter(top)


def _resolved(path: str, place: str | None) -> str | Unknown:
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return path
    return (
        Unknown("the working directory is not known") if place is None else os.path.normpath(os.path.join(place, path))
    )


def _conda_interpreter(word: Word | None, place: str | None, variables: Mapping[str, str]) -> Choice:
    name = "base" if word is None else word.value
    if name is None:
        return Unknown(f"which conda environment {word.written if word else ''} is cannot be told")
    top = _resolved(name, place) if "/" in name else conda_environment(name, variables)
    return top if isinstance(top, Unknown) else named_interpreter(top)


def conda_environment(name: str, variables: Mapping[str, str]) -> str | Unknown:
    """The directory of conda's environment of this name.

    Looked for where conda keeps them: ``envs`` below the installation, CONDA_ENVS_PATH, ``~/.conda/envs``, and the list
    in ``~/.conda/environments.txt``. A directory without ``conda-meta`` is none.
    """
    if variables.get("CONDA_DEFAULT_ENV") == name and variables.get("CONDA_PREFIX"):
        return variables["CONDA_PREFIX"]
    program = variables.get("CONDA_EXE") or which("conda", path=variables.get("PATH"))
    roots = [variables.get("MAMBA_ROOT_PREFIX"), os.path.dirname(os.path.dirname(program)) if program else None]
    if name in ("base", "root"):
        wanted = [root for root in roots if root]
    else:
        home = variables.get("HOME") or os.path.expanduser("~")
        folders = [os.path.join(root, "envs") for root in roots if root]
        for variable in ("CONDA_ENVS_PATH", "CONDA_ENVS_DIRS"):
            folders += [entry for entry in variables.get(variable, "").split(os.pathsep) if entry]
        folders.append(os.path.join(home, ".conda", "envs"))
        wanted = [os.path.join(folder, name) for folder in folders]
        listed = _text(os.path.join(home, ".conda", "environments.txt")).splitlines()
        wanted += [line.strip() for line in listed if os.path.basename(line.strip()) == name]
    for place in wanted:
        if os.path.isdir(os.path.join(place, "conda-meta")):
            return place
    return Unknown(f"no conda environment named {name} was found")


def _choice(command: Command, place: str | None, variables: Mapping[str, str], active: Choice) -> Choice:
    for wrapper in reversed(command.wrappers):
        if _decides(wrapper):
            return _wrapper_choice(wrapper, place, variables, active)
    first = command.words[0]
    if first.value is None:
        return Unknown(f"which interpreter {first.written} is cannot be told")
    if "/" in first.value:
        return _by_path(first.value, place)
    return active if active is not None else _by_path_variable(command, variables)


def _by_path(path: str, place: str | None) -> Choice:
    whole = _resolved(path, place)
    if isinstance(whole, Unknown):
        return whole
    if _INTERPRETER.fullmatch(os.path.basename(whole)):
        return named_interpreter(whole)
    if not os.path.isfile(whole):
        return Unknown(f"{path} does not exist")
    found = launcher_interpreter(whole)
    return found if found is not None else Unknown(f"{path} does not tell its interpreter")


def _by_path_variable(command: Command, variables: Mapping[str, str]) -> Choice:
    """The interpreter on a PATH that the text sets; None where it sets none."""
    variable = command.variable("PATH")
    if variable is None or variable.scope == "inherited" or variable.value is None:
        return None
    text = variable.text
    if text is None:
        # A toolkit's directory in front holds no interpreter.
        unknown = [name for name in variable.value.unknown_variables if "CUDA" not in name.upper()]
        return Unknown("PATH is set to something that is not known") if unknown else None
    if text == variables.get("PATH"):
        return None
    found = which("python", path=text) or which("python3", path=text)
    return os.path.abspath(found) if found else Unknown("there is no python on the PATH that the text sets")


def _wrapper_choice(wrapper: Wrapper, place: str | None, variables: Mapping[str, str], active: Choice) -> Choice:
    if _ELSEWHERE.match(wrapper.name):
        return Unknown(f"the command runs elsewhere ({wrapper.name}), whose packages are not looked at")
    if wrapper.name in _OTHER_TOOLS:
        return Unknown(f"{wrapper.name} chooses the environment when it runs")
    options = _options(wrapper)
    if options is None:
        return Unknown(f"the options of {wrapper.name} are not all known")
    if wrapper.name == "uv run":
        return _uv(options, place, variables, active)
    for flag in ("-p", "--prefix"):
        if flag in options:
            top = _resolved(options[flag], place)
            return top if isinstance(top, Unknown) else named_interpreter(top)
    named = options.get("-n") or options.get("--name")
    if named is None:
        return active
    top = conda_environment(named, variables)
    return top if isinstance(top, Unknown) else named_interpreter(top)


def _options(wrapper: Wrapper) -> dict[str, str] | None:
    """A wrapper's options with the word behind each (or behind its ``=``); None when a word is not known."""
    texts = [word.value for word in wrapper.words]
    known = [text for text in texts if text is not None]
    if len(known) < len(texts):
        return None
    found = {}
    for text, after in zip(known, [*known[1:], ""], strict=True):
        if text.startswith("-"):
            name, equals, value = text.partition("=")
            found[name] = value if equals else after
    return found


def _uv(options: Mapping[str, str], place: str | None, variables: Mapping[str, str], active: Choice) -> Choice:
    mixing = [
        flag for flag in ("--isolated", "--with", "--with-requirements", "--with-editable", "-w") if flag in options
    ]
    if mixing:
        return Unknown(f"uv run {mixing[0]} puts an environment together when it runs")
    start = options.get("--project") or options.get("--directory")
    top: str | Unknown = _resolved(start, place) if start else (place or Unknown("the working directory is not known"))
    if isinstance(top, Unknown):
        return top
    activated = (variables.get("VIRTUAL_ENV") or None) if active is None else active
    project = None if "--no-project" in options else _uv_project(top)
    if project is not None and not ("--active" in options and activated is not None):
        named = variables.get("UV_PROJECT_ENVIRONMENT") or ".venv"
        environment = os.path.normpath(os.path.join(project, named))
        return _made(environment)
    if "--python" in options or "-p" in options or variables.get("UV_PYTHON"):
        return Unknown("uv chooses the interpreter by --python")
    if activated is not None:
        return activated if isinstance(activated, Unknown) else named_interpreter(_environment_of(activated))
    if variables.get("CONDA_PREFIX") and variables.get("CONDA_DEFAULT_ENV") not in ("base", "root"):
        return named_interpreter(variables["CONDA_PREFIX"])
    for folder in _upwards(top):
        if os.path.isdir(os.path.join(folder, ".venv")):
            return named_interpreter(os.path.join(folder, ".venv"))
    return Unknown("uv chooses an interpreter when it runs: there is no environment here")


def _environment_of(path: str) -> str:
    return os.path.dirname(os.path.dirname(path)) if os.path.isfile(path) else path


def _made(environment: str) -> Choice:
    if not os.path.isdir(environment):
        return Unknown(f"uv would make {environment} first")
    return named_interpreter(environment)


def _uv_project(top: str) -> str | None:
    """The project's folder that holds the environment: the nearest with ``pyproject.toml``, or its workspace's root."""
    nearest = next((folder for folder in _upwards(top) if os.path.isfile(os.path.join(folder, "pyproject.toml"))), None)
    if nearest is None or re.search(
        r"^managed\s*=\s*false", _text(os.path.join(nearest, "pyproject.toml")), re.MULTILINE
    ):
        return None
    for folder in _upwards(nearest):
        if "[tool.uv.workspace]" in _text(os.path.join(folder, "pyproject.toml")):
            return folder
    return nearest


def _upwards(folder: str) -> list[str]:
    found = [folder]
    while os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
        found.append(folder)
    return found


def _text(path: str) -> str:
    return read_text(path, _LARGEST_TEXT) or ""
