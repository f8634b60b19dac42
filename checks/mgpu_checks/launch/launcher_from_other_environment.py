"""The launcher on PATH belongs to another Python than the environment that holds torch and the framework."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.launch import changes_environment
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    pattern,
    report,
)

_MODULES = {
    "accelerate": "accelerate.commands.launch",
    "torchrun": "torch.distributed.run",
    "deepspeed": "deepspeed.launcher.runner",
    "llamafactory-cli": "llamafactory.cli",
}
_OWNER = {"torchrun": "torch", "accelerate": "accelerate", "deepspeed": "deepspeed", "llamafactory-cli": "llamafactory"}
_OTHERS = pattern(r"/(?:envs?|\.?venv|virtualenvs|\.local|(?:ana|mini)conda3?|miniforge3?|mambaforge)/")
"""Directories that hold the commands of an environment of their own."""

_OTHER = {
    "which": {"torchrun": "/home/me/.local/bin/torchrun", "python": "/opt/env/bin/python"},
    "shebangs": {"/home/me/.local/bin/torchrun": "#!/usr/bin/python3"},
    "python": {"executable": "/opt/env/bin/python", "prefix": "/opt/env"},
}

RULE = Rule(
    code="MGD112",
    slug="launcher-from-other-environment",
    title="The launcher belongs to another environment",
    severity=Severity.ERROR,
    summary="the launcher that PATH finds starts another interpreter than the environment's",
    why=(
        "A launcher is a small script whose first line names its interpreter, and it starts every worker with that "
        "one. "
        "When PATH finds a copy in the user's ~/.local/bin or of a system module first, the workers import other "
        "packages: 'No module named …', or another torch than the one that was tested. `python -m` in front of the "
        "launcher's module takes the interpreter of the active environment."
    ),
    bad=(
        Example(
            "torchrun of the user's own site",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "conda's base finds the copy of another environment first",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                "which": {"torchrun": "/opt/conda/envs/old/bin/torchrun"},
                "shebangs": {"/opt/conda/envs/old/bin/torchrun": "#!/opt/conda/envs/old/bin/python3.9"},
                "python": {"executable": "/opt/conda/bin/python", "prefix": "/opt/conda"},
            },
        ),
        Example(
            "uv run in a project whose environment has no torch",
            "uv run torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n", "pyproject.toml": "[project]\nname = 'x'\n"},
            facts={**_OTHER, "python": {"executable": "/srv/x/.venv/bin/python", "prefix": "/srv/x/.venv"}},
        ),
        Example(
            "the torchrun that llamafactory-cli starts",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "model_name_or_path: local/model\nstage: sft\noutput_dir: out\n"},
            facts={
                **_OTHER,
                "which": {
                    "torchrun": "/home/me/.local/bin/torchrun",
                    "llamafactory-cli": "/opt/env/bin/llamafactory-cli",
                },
            },
        ),
    ),
    good=(
        Example(
            "the environment's own",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                **_OTHER,
                "which": {"torchrun": "/opt/env/bin/torchrun"},
                "shebangs": {"/opt/env/bin/torchrun": "#!/opt/env/bin/python3.11"},
            },
        ),
        Example(
            "a link elsewhere that starts the environment's interpreter",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                **_OTHER,
                "which": {"torchrun": "/usr/local/bin/torchrun"},
                "shebangs": {"/usr/local/bin/torchrun": "#!/opt/env/bin/python"},
            },
        ),
        Example(
            "python -m takes the active interpreter",
            "python -m torch.distributed.run --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "the system's interpreter by its other path",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                "which": {"torchrun": "/usr/bin/torchrun"},
                "shebangs": {"/usr/bin/torchrun": "#!/bin/python3"},
                "python": {"executable": "/usr/bin/python3", "prefix": "/usr"},
            },
        ),
        Example(
            "another environment is activated first",
            "source /opt/env/bin/activate && torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "conda run looks in the environment that it is told",
            "conda run -n env torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "the project's environment has a torchrun of its own",
            "uv run torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n", ".venv/bin/torchrun": "#!/srv/x/.venv/bin/python\n"},
            facts=_OTHER,
        ),
        Example(
            "the first line is not known",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"torchrun": "/usr/bin/torchrun"}, "python": {"prefix": "/opt/env"}},
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args(); accelerate 1.7.0, utils/launch.py; deepspeed 0.16.9, "
            "launcher/launch.py",
            "workers are started with sys.executable, the launcher's own interpreter",
        ),
        Reference(
            "llamafactory 0.9.3 cli.py, 0.9.5 launcher.py",
            "subprocess.run('torchrun …'.split()): the torchrun that PATH finds",
        ),
    ),
    fix="Start the launcher's module with the environment's interpreter",
    signatures=(
        Signature(
            r"ModuleNotFoundError: No module named '(?:llamafactory|torch)'",
            "Python 3.11 in a rank whose interpreter is not the environment's",
            "ModuleNotFoundError: No module named 'llamafactory'",
        ),
        Signature(
            r'^\s*File "[^"]*/\.local/bin/(?:torchrun|accelerate|deepspeed|llamafactory-cli)"',
            "Python 3.11, the traceback of a launcher in the user's own site",
            '  File "/home/me/.local/bin/torchrun", line 8, in <module>',
            weak=True,
        ),
        Signature(
            r"ModuleNotFoundError: No module named '(?:accelerate|deepspeed|transformers)'",
            "Python 3.11 in a rank whose interpreter is not the environment's",
            "ModuleNotFoundError: No module named 'accelerate'",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launcher whose interpreter lies outside the environment."""
    prefix = _prefix(case)
    if case.mode == "lint" or prefix is None:
        return
    for launch in case.launches:
        if launch.command.variable("PATH") is not None or _looks_elsewhere(launch) or changes_environment(case, launch):
            continue
        for layer in launch.layers:
            finding = None if _in_project(case, launch, layer) else _judge(case, launch, layer, prefix)
            if finding is not None:
                yield finding


_HARMLESS = frozenset({"nohup", "time", "env", "exec", "stdbuf", "timeout", "uv run", "srun", "numactl", "nice"})
"""Wrappers behind which the same PATH counts (``uv run`` puts the project's environment in front of it)."""


def _looks_elsewhere(launch: Launch) -> bool:
    """Whether a wrapper starts the launcher in a container, on another machine or in an environment of its own."""
    return any(wrapper.name not in _HARMLESS for wrapper in launch.command.wrappers)


def _in_project(case: Case, launch: Launch, layer: Layer) -> bool:
    """Whether ``uv run`` finds or installs the launcher in the project's environment, not on PATH."""
    if not any(wrapper.name == "uv run" for wrapper in launch.command.wrappers):
        return False
    directory = launch.command.directory
    if case.workspace.kind(f".venv/bin/{layer.launcher}", directory) == "file":
        return True
    declared = case.workspace.read("pyproject.toml", "config", directory)
    # It installs what the project requires before it starts anything.
    return (
        not isinstance(declared, Unknown)
        and pattern(_OWNER.get(layer.launcher, "torch")).search(declared.text) is not None
    )


def _prefix(case: Case) -> str | None:
    """The environment that counts: its prefix, or the directory above its interpreter's."""
    python = case.facts.python
    if not isinstance(python.prefix, Unknown):
        return python.prefix
    if isinstance(python.executable, Unknown) or "/bin/" not in python.executable:
        return None
    return python.executable.rpartition("/bin/")[0]


def _judge(case: Case, launch: Launch, layer: Layer, prefix: str) -> Finding | None:
    which, shebangs = case.facts.which, case.facts.shebangs
    if isinstance(which, Unknown) or layer.launcher not in _MODULES:
        return None
    name = layer.launcher
    typed = layer.command_words[0].value if layer.command_words else None
    path = which.get(name)
    if path is None or (typed != name and not layer.implied):
        return None
    line = None if isinstance(shebangs, Unknown) else shebangs.get(path)
    if line is None:
        if _belongs(case, path, prefix) or not _OTHERS.search(path):
            return None
        outcome = f"lies in another environment than {prefix}"
    else:
        interpreter = _interpreter(line)
        same = interpreter is None or _belongs(case, interpreter, prefix) or interpreter == case.facts.python.executable
        if same:
            return None
        outcome = f"uses {interpreter}, not the interpreter of {prefix}"
    start = (
        f"llamafactory-cli starts the {name} that PATH finds, and that" if layer.implied else f"{name} is {path} and"
    )
    return report(
        RULE,
        f"{start} {outcome}: its workers import other packages",
        launch.command.locate(layer.span),
        severity=Severity.WARNING if line is None else Severity.ERROR,
        evidence=[Evidence(path if line is None else f"{path}: {line}")],
        fix=Fix(f"Put {prefix}/bin first on PATH, or start python -m {_MODULES[name]}"),
    )


def _interpreter(line: str | None) -> str | None:
    """The interpreter's path in a first line; None when it is looked up on PATH or cannot be read."""
    found = re.match(r"#!\s*(/\S+)", line or "")
    if found is None or found.group(1).endswith(("/env", "/sh", "/bash")):
        return None
    return found.group(1)


def _belongs(case: Case, path: str, prefix: str) -> bool:
    """Whether a program in ``bin`` belongs to the environment itself, not to one that lies below it as conda's do."""
    at, found, _ = path.rpartition("/bin/")
    if not found:
        return True
    if _plain(at) == _plain(prefix):
        return True
    here, there = case.workspace.resolve(at or "/"), case.workspace.resolve(prefix)
    if isinstance(here, Unknown) or isinstance(there, Unknown):
        # The system's directories are links to those below /usr on most machines.
        return False
    return here == there


def _plain(directory: str) -> str:
    """A directory without a slash at its end; ``/`` and ``/usr`` are one, as ``/bin`` is a link to ``/usr/bin``."""
    return (
        directory.rstrip("/").removeprefix("/usr") if directory.rstrip("/") in {"", "/usr"} else directory.rstrip("/")
    )
