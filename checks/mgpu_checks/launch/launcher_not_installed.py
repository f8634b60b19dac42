"""The command that launches is missing, or is a file that cannot be executed."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import THIS_MACHINE, changes_environment, installs_before
from mgpu_doctor.authoring import (
    Case,
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
    Word,
    report,
)

_OWNERS = {
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "torchrun": "torch",
    "llamafactory-cli": "llamafactory",
    "lmf": "llamafactory",
    "swift": "ms-swift",
}

RULE = Rule(
    code="MGD113",
    slug="launcher-not-installed",
    title="The launcher cannot be started",
    severity=Severity.ERROR,
    summary="the launching command is not on PATH, or the file there is not executable",
    why=(
        "`command not found` or `Permission denied` from a launcher usually means another environment than the one "
        "that "
        "was set up, or a script that was copied without its permissions. `python -m accelerate.commands.launch`, "
        "`python -m torch.distributed.run` and `python -m deepspeed.launcher.runner` start the same launchers with the "
        "interpreter that is asked for."
    ),
    bad=(
        Example(
            "the file has no permission to execute",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={
                "which": {"deepspeed": "/opt/env/bin/deepspeed"},
                "paths": {"/opt/env/bin/deepspeed": {"mode": "-rw-r--r--"}},
            },
        ),
        Example(
            "all that is known: it is not on PATH",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"packages": None, "which": {"deepspeed": None}},
        ),
        Example(
            "neither the command nor its package",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"python": "/opt/conda/bin/python"}, "packages": {"torch": "2.6.0"}},
        ),
        Example(
            "the path that is given leads nowhere",
            "./env/bin/torchrun --nproc-per-node 2 train.py",
            files={"train.py": "import torch\n"},
        ),
        Example(
            "the facts say that it is not on PATH",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"deepspeed": None, "python": "/opt/env/bin/python"}},
        ),
    ),
    good=(
        Example(
            "not looked for",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"packages": None, "which": {"accelerate": None}},
        ),
        Example(
            "an executable file",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={
                "which": {"deepspeed": "/opt/env/bin/deepspeed"},
                "paths": {"/opt/env/bin/deepspeed": {"mode": "-rwxr-xr-x"}},
            },
        ),
        Example(
            "another environment is activated first",
            "conda activate train\ndeepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"python": "/opt/conda/bin/python"}, "packages": {"torch": "2.6.0"}},
        ),
        Example(
            "it is installed first",
            "pip install deepspeed\ndeepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"python": "/opt/conda/bin/python"}, "packages": {"torch": "2.6.0"}},
        ),
        Example(
            "a facts file that does not mention it",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"python": "/opt/env/bin/python"}},
        ),
    ),
    sources=(
        Reference("bash 5.2, manual, section 3.7.5 Exit Status", "127: command not found; 126: not executable"),
        Reference(
            "accelerate 1.7.0, torch 2.6.0, deepspeed 0.16.9, llamafactory 0.9.3, ms-swift 3.9.0, entry_points.txt",
            "the console commands that each package installs",
        ),
    ),
    fix="Activate the environment that holds the launcher, or install it there",
    signatures=(
        Signature(
            r"^failed to create process\.?$",
            "setuptools 47.1.0 and 65.5.0, launcher.c: a console script on Windows whose interpreter is not there",
            "failed to create process.",
        ),
        Signature(
            r"(?:^|[\s:/])(?:accelerate|accelerate-launch|torchrun|deepspeed|llamafactory-cli|lmf|swift|ds): "
            r"(?:command )?not found",
            "bash 5.2 and dash 0.5.12",
            "bash: line 1: torchrun: command not found",
        ),
        Signature(
            r"/(?:accelerate|torchrun|deepspeed|llamafactory-cli|lmf|swift|ds): (?:Permission denied|cannot "
            r"execute|bad interpreter)",
            "bash 5.2",
            "bash: /opt/env/bin/deepspeed: Permission denied",
        ),
        Signature(
            r"FileNotFoundError: \[Errno 2\] No such file or directory: '(?:torchrun|accelerate|deepspeed)'",
            "Python 3.11, subprocess without a shell, as llamafactory 0.9.3 cli.py starts torchrun",
            "FileNotFoundError: [Errno 2] No such file or directory: 'torchrun'",
        ),
        Signature(
            r"^failed to create process\.$",
            "setuptools 80.9.0, cli-64.exe: a console script whose interpreter is gone (Windows)",
            "failed to create process.",
        ),
        Signature(
            r"^zsh: command not found: (?:accelerate|accelerate-launch|torchrun|deepspeed|llamafactory-cli|lmf"
            r"|swift|ds)$",
            "zsh 5.9 (public reports)",
            "zsh: command not found: accelerate",
        ),
        Signature(
            r"^(?:\S*/)?python[\d.]*: (?:No module named '?(?:accelerate|deepspeed|torch|llamafactory|swift"
            r"|axolotl)\b(?![\w.]*\.__main__)|Error while finding module specification for "
            r"'(?:accelerate|deepspeed|torch|llamafactory|swift|axolotl)\b.*No module named "
            r"'(?:accelerate|deepspeed|torch|llamafactory|swift|axolotl)')",
            "Python 3.11, python -m of a launcher's package that its environment lacks",
            "/usr/bin/python3: No module named accelerate.commands",
        ),
        Signature(
            r"/(?:accelerate|accelerate-launch|torchrun|deepspeed|llamafactory-cli|lmf|swift|ds): \S+: bad interpreter",
            "bash 5.1: the interpreter in the script's first line is gone",
            "bash: /opt/env/bin/accelerate: /opt/old/bin/python3: bad interpreter: No such file or directory",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launcher that the machine cannot start."""
    if case.mode == "lint":
        return
    for launch in case.launches:
        if launch.command.wrappers and _changes_place(launch):
            continue
        if launch.command.variable("PATH") is not None or changes_environment(case, launch):
            continue
        for layer in launch.layers:
            if layer.implied or not layer.command_words or layer.command_words[0].value is None:
                continue
            finding = _judge(case, launch, layer, layer.command_words[0])
            if finding is not None:
                yield finding


def _changes_place(launch: Launch) -> bool:
    """Whether a wrapper looks for the command elsewhere than on this PATH."""
    return any(
        wrapper.name not in ("nohup", "time", "env", "exec", "stdbuf", "timeout") for wrapper in launch.command.wrappers
    )


def _judge(case: Case, launch: Launch, layer: Layer, word: Word) -> Finding | None:
    text = str(word.value)
    if "/" in text:
        kind = case.workspace.kind(text, launch.command.directory)
        if kind == "missing" and layer.launcher in _OWNERS:
            return _report(launch, word, f"{text} does not exist: there is no launcher to start", None)
        path = text
    else:
        which = case.facts.which
        if isinstance(which, Unknown):
            return None
        place = which.get(text)
        if place is None:
            return _missing(case, launch, word, text, told=text in which)
        path = place
    mode = _mode(case, launch, path)
    if mode is not None and mode.startswith("-") and "x" not in mode:
        return _without_permission(launch, word, path, mode)
    return _left_over(case, launch, word, path) or _of_nothing(case, launch, word, text.rsplit("/", 1)[-1], path)


def _mode(case: Case, launch: Launch, path: str) -> str | None:
    """The rights on a file as ``ls -l`` writes them; None when they are not known."""
    storage = case.workspace.storage(path, launch.command.directory)
    known = not isinstance(storage, Unknown) and storage.is_whole and isinstance(storage.mode, str)
    return str(storage.mode) if known and not isinstance(storage, Unknown) else None


def _without_permission(launch: Launch, word: Word, path: str, mode: str) -> Finding:
    fix = Fix("Make it executable", commands=(f"chmod +x {path}",))
    return _report(launch, word, f"{path} is not executable ({mode}): 'Permission denied'", fix)


def _left_over(case: Case, launch: Launch, word: Word, path: str) -> Finding | None:
    """A script whose first line names an interpreter that is gone: its environment was moved or deleted."""
    line = None if isinstance(case.facts.shebangs, Unknown) else case.facts.shebangs.get(path)
    interpreter = (line or "").removeprefix("#!").split()[:1]
    if not interpreter or not interpreter[0].startswith("/"):
        return None
    if case.workspace.kind(interpreter[0]) != "missing":
        return None
    message = f"{path} starts {interpreter[0]}, which does not exist: 'bad interpreter'"
    return _report(launch, word, message, Fix("Install it again in the environment that is active"))


def _of_nothing(case: Case, launch: Launch, word: Word, name: str, path: str) -> Finding | None:
    """A launcher whose package is gone from the very environment that it belongs to, or was renamed there."""
    packages, prefix = case.facts.packages, case.facts.python.prefix
    owners = _NAMES.get(name)
    if owners is None or isinstance(packages, Unknown) or isinstance(prefix, Unknown):
        return None
    if case.facts.origin != THIS_MACHINE or not packages or any(owner in packages for owner in owners):
        return None
    line = None if isinstance(case.facts.shebangs, Unknown) else case.facts.shebangs.get(path)
    if path.rpartition("/bin/")[0] != prefix or not (line or "").startswith(f"#!{prefix}/bin/python"):
        return None
    message = f"{path} is left over: {owners[0]} is not installed in {prefix}, so that its import fails"
    fix = f"Activate the environment that has {owners[0]}, or install it"
    return _report(launch, word, message, Fix(fix, commands=(f"python -m pip install {owners[0]}",)))


_NAMES = {
    "accelerate": ("accelerate",),
    "deepspeed": ("deepspeed",),
    "torchrun": ("torch",),
    "llamafactory-cli": ("llamafactory", "llmtuner"),
    "lmf": ("llamafactory",),
}
"""The distributions that bring a command (llmtuner is LLaMA-Factory's former name)."""


def _missing(case: Case, launch: Launch, word: Word, name: str, *, told: bool) -> Finding | None:
    """A command that is not on PATH.

    Another machine's PATH is known only where its packages agree, unless the facts name the command (``told``).
    """
    owner = _OWNERS.get(name)
    if installs_before(case, launch):
        return None
    if owner is None:
        return None
    if isinstance(case.facts.packages, Unknown) or not case.facts.packages:
        if case.facts.origin == THIS_MACHINE or not told:
            return None
        return _report(launch, word, f"{name} is not on PATH", Fix(f"Activate the environment that holds {owner}"))
    if owner in case.facts.packages:
        if case.facts.origin != THIS_MACHINE and not told:
            return None
        prefix = case.facts.python.prefix
        beside = "" if isinstance(prefix, Unknown) else f"{prefix}/bin/{name}"
        mode = _mode(case, launch, beside) if beside else None
        if mode is not None and mode.startswith("-") and "x" not in mode:
            return _without_permission(launch, word, beside, mode)
        message = f"{name} is not on PATH, although {owner} {case.facts.packages[owner]} is installed"
        if mode is not None:
            return _report(launch, word, f"{message}: it is {beside}", Fix(f"Put {beside.rpartition('/')[0]} on PATH"))
        return _report(launch, word, message, Fix("Activate its environment, or start it as python -m …"))
    if case.mode != "check" and "torch" not in case.facts.packages:
        # A machine without torch is where the command is read, not where it is meant to run.
        return None
    message = f"{name} is not on PATH and {owner} is not installed"
    fix = f"Activate the environment that has {owner}, or install it"
    return _report(launch, word, message, Fix(fix, commands=(f"python -m pip install {owner}",)))


def _report(launch: Launch, word: Word, message: str, fix: Fix | None) -> Finding:
    return report(RULE, message, launch.command.locate(word.span), fix=fix)
