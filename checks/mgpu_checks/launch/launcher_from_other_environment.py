"""The launcher on PATH belongs to another Python than the environment that holds torch and the framework."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launcher whose interpreter lies outside the environment."""
    prefix = _prefix(case)
    if case.mode == "lint" or prefix is None:
        return
    for launch in case.launches:
        if launch.command.variable("PATH") is not None:
            continue
        for layer in launch.layers:
            finding = _judge(case, launch, layer, prefix)
            if finding is not None:
                yield finding


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
        if _inside(path, prefix) or not _OTHERS.search(path):
            return None
        outcome = f"lies in another environment than {prefix}"
    else:
        interpreter = _interpreter(line)
        same = interpreter is None or _inside(interpreter, prefix) or interpreter == case.facts.python.executable
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


def _inside(path: str, prefix: str) -> bool:
    return path.startswith(prefix.rstrip("/") + "/")
