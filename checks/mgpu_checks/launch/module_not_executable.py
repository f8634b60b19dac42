"""``-m PKG`` names a package that has no ``__main__``: Python cannot run it."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import replace_words, typed_rank_layers, version_at_least
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    report,
)

RULE = Rule(
    code="MGD101",
    slug="module-not-executable",
    title="The module is a package that cannot be executed",
    severity=Severity.ERROR,
    summary="`-m` is given a package without `__main__`, which Python refuses to run.",
    why=(
        "`python -m pkg` runs the file `pkg/__main__.py`. A package without one stops every rank at once with "
        "\"No module named pkg.__main__; 'pkg' is a package and cannot be directly executed\". LLaMA-Factory's "
        "`llamafactory.train` is such a package; the module that may be launched is `llamafactory.launcher`, which "
        "takes the training arguments and no sub-command."
    ),
    bad=(
        Example(
            "LLaMA-Factory's train package",
            "accelerate launch --num_processes 4 -m llamafactory.train --stage sft --do_train true",
        ),
        Example("with plain python", "python -m llamafactory.train sft.yaml", files={"sft.yaml": "stage: sft\n"}),
        Example("with torchrun", "torchrun --nproc_per_node 2 -m llamafactory.train.sft sft.yaml"),
        Example(
            "the distribution's own name and a sub-command",
            "torchrun --nproc_per_node 2 -m llamafactory train sft.yaml",
        ),
        Example("a text without a machine", "accelerate launch -m llamafactory.train --stage sft", facts=None),
    ),
    good=(
        Example("the module that is made for it", "accelerate launch -m llamafactory.launcher --stage sft"),
        Example(
            "a package of the project that has a main file",
            "torchrun --nproc_per_node 2 -m mytrain --lr 1e-4",
            files={"mytrain/__init__.py": "", "mytrain/__main__.py": "print(1)\n"},
        ),
        Example(
            "a module inside a package",
            "python -m mytrain.run",
            files={"mytrain/__init__.py": "", "mytrain/run.py": "print(1)\n"},
        ),
        Example("a package that nobody knows", "torchrun --nproc_per_node 2 -m unheard.of"),
        Example("the command's own module", "python -m llamafactory.cli version"),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3, 0.9.0, 0.9.1, 0.9.2, 0.9.3, 0.9.4, 0.9.5, train/__init__.py and launcher.py",
            "train is a package without __main__.py; launcher.py ends in a main block that calls run_exp()",
        ),
        Reference(
            "llamafactory 0.9.3, python -m llamafactory.train",
            "'llamafactory.train' is a package and cannot be directly executed",
            ran=True,
        ),
        Reference(
            "llamafactory 0.7.1, 0.8.3, 0.9.0, 0.9.1, cli.py",
            "the file has no main block: python -m llamafactory.cli ends without having done anything",
        ),
    ),
    fix="Name the module that can be run",
    fixable=True,
    signatures=(
        Signature(
            r"No module named [\w.]+\.__main__; '[\w.]+' is a package and cannot be directly executed",
            "Python 3.11, runpy; python -m and each rank of accelerate 1.7.0 and torchrun (torch 2.13.0)",
            "/opt/env/bin/python: No module named llamafactory.train.__main__; 'llamafactory.train' is a "
            "package and cannot be directly executed",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose module is a package without ``__main__``."""
    unknown: Unknown | None = None
    for launch in case.launches:
        silent = _idle_module(launch)
        if silent is not None:
            yield silent
        if launch.target.kind != "module" or launch.target.value is None or launch.target.word is None:
            continue
        kind = _kind(case, launch, launch.target.value)
        if isinstance(kind, Unknown):
            unknown = kind
        elif kind == "package-without-main":
            yield _report(case, launch, launch.target.value)
    if unknown is not None:
        case.require(unknown)


def _kind(case: Case, launch: Launch, module: str) -> str | Unknown:
    """What the module is: in the working directory first, as Python looks for it, then among installed packages."""
    directory = launch.command.directory
    path = module.replace(".", "/")
    top = module.split(".", maxsplit=1)[0]
    if case.workspace.kind(f"{top}/__init__.py", directory) == "file":
        if case.workspace.kind(f"{path}/__init__.py", directory) != "file":
            return "module"
        found = case.workspace.kind(f"{path}/__main__.py", directory)
        return found if isinstance(found, Unknown) else "package-without-main" if found == "missing" else "package"
    return case.knowledge.module_kind(module)


def _report(case: Case, launch: Launch, module: str) -> Finding:
    word = launch.target.word
    assert word is not None
    message = f"{module} is a package without __main__, so `-m {module}` is refused and every process ends at once."
    return report(
        RULE,
        message,
        launch.command.locate(word.span),
        evidence=(_evidence(case, module),),
        fix=_fix(case, launch, module),
    )


def _evidence(case: Case, module: str) -> str:
    release = case.knowledge.release(module.split(".", maxsplit=1)[0])
    if release.version is None:
        return f"Python: No module named {module}.__main__; '{module}' is a package and cannot be directly executed"
    return f"{release.package} {release.version} ({release.why}) has no {module.replace('.', '/')}/__main__.py"


def _fix(case: Case, launch: Launch, module: str) -> Fix | None:
    if module in _ENTRIES:
        return _entry_fix(launch, module)
    if module.split(".", maxsplit=1)[0] != "llamafactory":
        return _project_fix(case, launch, module)
    word = launch.target.word
    words = launch.target.argument_words
    assert word is not None
    if version_at_least(case.knowledge.release("llamafactory").version, 0, 8) is False:
        return Fix("launch src/train.py of LLaMA-Factory's repository: this release has no module that can be run")
    given = words[0].value if module == "llamafactory" and words else None
    if given is None or given == "train":
        last = words[0] if given == "train" else word
        edits = replace_words(launch, word, last, "llamafactory.launcher")
        return Fix("launch llamafactory.launcher, which takes the training arguments", edits, safe=bool(edits))
    if typed_rank_layers(launch):
        return Fix(f"run it without a launcher: llamafactory-cli {given}")
    return Fix("name its command's module", replace_words(launch, word, word, "llamafactory.cli"))


_ENTRIES = {
    "accelerate": "accelerate.commands.accelerate_cli",
    "accelerate.commands": "accelerate.commands.accelerate_cli",
    "deepspeed": "deepspeed.launcher.runner",
    "deepspeed.launcher": "deepspeed.launcher.runner",
    "torch.distributed": "torch.distributed.run",
    "torch": "torch.distributed.run",
}
"""The modules that a package's command runs (entry points of accelerate 1.7.0, deepspeed 0.16.9, torch 2.13.0)."""


def _entry_fix(launch: Launch, module: str) -> Fix:
    word = launch.target.word
    entry = _ENTRIES[module]
    edits = () if word is None or typed_rank_layers(launch) else replace_words(launch, word, word, entry)
    return Fix(f"name the module that its command runs: {entry}", edits)


def _project_fix(case: Case, launch: Launch, module: str) -> Fix | None:
    """Name the modules of the project's package that have a main block."""
    path = module.replace(".", "/")
    names = case.workspace.names(path, launch.command.directory)
    if isinstance(names, Unknown):
        return None
    runnable = []
    for name in names:
        if name.endswith(".py") and not name.startswith("_"):
            program = case.workspace.program(f"{path}/{name}", launch.command.directory)
            if not isinstance(program, Unknown) and program.first("main-block") is not None:
                runnable.append(f"{module}.{name.removesuffix('.py')}")
    word = launch.target.word
    if len(runnable) == 1 and word is not None:
        return Fix(f"name the module that can be run: {runnable[0]}", replace_words(launch, word, word, runnable[0]))
    if runnable:
        return Fix(f"name one of the modules that can be run: {', '.join(runnable[:5])}")
    return Fix(f"name a module inside {module}, or give it a __main__.py")


def _idle_module(launch: Launch) -> Finding | None:
    """``python -m llamafactory.cli`` of a release whose module has no main block."""
    layer = launch.layer("llamafactory-cli")
    if layer is None or layer.release is None or not layer.release.certain:
        return None
    if layer.command_words[-1].value != "llamafactory.cli":
        return None
    if version_at_least(layer.release.version, 0, 9, 2) is not False:
        return None
    word = layer.command_words[-1]
    return report(
        RULE,
        f"llamafactory.cli of release {layer.release.version} has no main block: "
        "`-m llamafactory.cli` ends at once, exit status 0, and nothing has run.",
        launch.command.locate(word.span),
        fix=Fix(
            "call llamafactory-cli itself", replace_words(launch, layer.command_words[0], word, "llamafactory-cli")
        ),
    )
