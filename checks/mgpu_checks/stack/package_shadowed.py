"""A package is imported from another place than the one where it is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.stack import is_here, is_machine_alone, variable
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    PackageCopy,
    Program,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    report,
)

_TRAINER = "from transformers import Trainer\n\nTrainer(model=build()).train()\n"
_ACCELERATOR = "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"
_TWO = [
    {"version": "4.40.0", "site": "/home/me/.local/lib/python3.11/site-packages"},
    {"version": "4.52.4", "site": "/opt/conda/envs/lf/lib/python3.11/site-packages"},
]
_CONDA = {"prefix": "/opt/conda/envs/lf", "version": "3.11.9"}

RULE = Rule(
    code="MGD512",
    slug="package-shadowed",
    title="Another copy of the package is imported",
    severity=Severity.WARNING,
    summary="A file or folder beside the script, the user site or PYTHONPATH hides the installed package.",
    why=(
        "Python looks for modules beside the script first, then in PYTHONPATH, then in the user site, and only then in "
        "the environment. A file `accelerate.py` or a package `datasets/` next to train.py is imported instead of the "
        "library, also by other libraries: transformers' Trainer then fails with \"module 'datasets' has no attribute "
        "'Dataset'\". An older copy in ~/.local hides the one in the environment: it is not the version that pip shows "
        "there. A folder without `__init__.py` hides nothing."
    ),
    bad=(
        Example(
            "a file with the library's name",
            "accelerate launch train.py",
            {"train.py": _ACCELERATOR, "accelerate.py": "def speed():\n    return 1\n"},
        ),
        Example(
            "a package that transformers imports as well",
            "torchrun --nproc_per_node 8 src/train.py",
            {"src/train.py": _TRAINER, "src/datasets/__init__.py": "", "src/datasets/text.py": "class Text: ...\n"},
        ),
        Example(
            "a file that means the library and imports itself",
            "python train.py",
            {
                "train.py": "from datasets import load_dataset\nimport torch\n\nx = torch.ones(1).cuda()\n",
                "datasets.py": "from datasets import load_dataset\n\nSETS = ('a', 'b')\n",
            },
        ),
        Example(
            "the script has the library's name",
            "deepspeed --num_gpus 8 deepspeed.py",
            {"deepspeed.py": "import deepspeed\n\nengine, *_ = deepspeed.initialize(model=build())\n"},
        ),
        Example(
            "with -m the working directory counts",
            "torchrun --nproc_per_node 8 -m tools.train",
            {"tools/__init__.py": "", "tools/train.py": _ACCELERATOR, "accelerate/__init__.py": ""},
        ),
        Example(
            "PYTHONPATH=. adds the working directory",
            "PYTHONPATH=. accelerate launch src/train.py",
            {"src/train.py": _ACCELERATOR, "accelerate/__init__.py": ""},
        ),
        Example("a copy in the user site", facts={"package_copies": {"transformers": _TWO}, "python": _CONDA}),
        Example(
            "a copy in PYTHONPATH",
            "torchrun --nproc_per_node 8 train.py",
            {"train.py": _TRAINER},
            {
                "package_copies": {
                    "transformers": [{"version": "4.40.0", "site": "/apps/python"}, {"version": "4.52.4", "site": "/v"}]
                },
                "env": {"PYTHONPATH": "/apps/python"},
            },
        ),
    ),
    good=(
        Example(
            "a folder without __init__.py",
            "accelerate launch train.py",
            {"train.py": _ACCELERATOR, "accelerate/notes.txt": "x"},
        ),
        Example(
            "the program means its own package",
            "torchrun --nproc_per_node 8 train.py",
            {
                "train.py": "import torch\nfrom datasets.text import Text\n\ntorch.zeros(1).cuda()\n",
                "datasets/__init__.py": "",
                "datasets/text.py": "class Text: ...\n",
            },
        ),
        Example(
            "beside another script",
            "accelerate launch src/train.py",
            {"src/train.py": _ACCELERATOR, "accelerate/__init__.py": ""},
        ),
        Example(
            "switched off",
            "PYTHONSAFEPATH=1 accelerate launch train.py",
            {"train.py": _ACCELERATOR, "accelerate.py": "x = 1\n"},
        ),
        Example(
            "the library's own source tree",
            "deepspeed --num_gpus 8 train.py",
            {
                "train.py": "import deepspeed\n\nengine, *_ = deepspeed.initialize(model=build())\n",
                "deepspeed/__init__.py": "from .runtime import initialize\n",
                "setup.py": "from setuptools import setup\n\nsetup(name='deepspeed')\n",
            },
        ),
        Example(
            "a virtual environment over the system",
            facts={
                "package_copies": {
                    "transformers": [
                        {"version": "4.52.4", "site": "/srv/venv/lib/python3.11/site-packages"},
                        {"version": "4.40.0", "site": "/usr/lib/python3/dist-packages"},
                    ]
                },
                "python": {"prefix": "/srv/venv"},
            },
        ),
        Example(
            "the system's Python has nothing but the user site",
            facts={
                "package_copies": {"transformers": [_TWO[0], {**_TWO[1], "site": "/usr/lib/python3/dist-packages"}]},
                "python": {"prefix": "/usr"},
            },
        ),
        Example(
            "two copies of the same version",
            facts={"package_copies": {"transformers": [_TWO[0], {**_TWO[1], "version": "4.40.0"}]}, "python": _CONDA},
        ),
    ),
    sources=(
        Reference(
            "CPython 3.11.7, with accelerate 1.15.0, torch 2.13.0 and deepspeed 0.19.8",
            "python, torchrun, accelerate launch and deepspeed put the script's directory first, torchrun -m and "
            "accelerate launch -m the working directory; accelerate.py and accelerate/__init__.py are imported from "
            "there, accelerate/ without __init__.py is not; PYTHONSAFEPATH=1 and -P switch it off",
            ran=True,
        ),
        Reference("CPython 3.11, Lib/site.py", "the user site comes before the site-packages of the interpreter"),
        Reference(
            "transformers 4.45.2, trainer.py",
            "`import datasets` when the distribution is installed, then datasets.Dataset",
        ),
    ),
    fix="rename the local file or folder, or remove the other copy",
    signatures=(
        Signature(
            r"module 'datasets' has no attribute '(?:Dataset|IterableDataset|load_dataset)'",
            "transformers 4.45.2, trainer.py, with a local package datasets",
            "AttributeError: module 'datasets' has no attribute 'Dataset'",
        ),
        Signature(
            r"partially initialized module '(?:torch|accelerate|deepspeed|transformers|datasets)' has no attribute",
            "CPython 3.11, for a script that has the name of the library",
            "AttributeError: partially initialized module 'deepspeed' has no attribute 'initialize' (most likely due "
            "to a circular import)",
        ),
    ),
)

MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "datasets": "datasets",
    "peft": "peft",
    "trl": "trl",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "flash_attn": "flash-attn",
    "bitsandbytes": "bitsandbytes",
    "triton": "triton",
    "vllm": "vllm",
    "llamafactory": "llamafactory",
    "numpy": "numpy",
}
"""Module → distribution, for those whose shadows matter."""

_TRAINER_IMPORTS = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub")

IMPORTED_BY = {
    "trl": (*_TRAINER_IMPORTS, "peft"),
    "llamafactory": (*_TRAINER_IMPORTS, "peft", "trl"),
    "transformers": ("torch", "tokenizers", "safetensors", "huggingface_hub", "numpy"),
    "accelerate": ("torch", "safetensors", "huggingface_hub", "numpy"),
    "peft": ("torch", "transformers", "accelerate", "safetensors", "huggingface_hub"),
    "deepspeed": ("torch", "numpy"),
}
"""Library → what it surely imports itself (transformers 4.45.2, trl 0.9.6, peft 0.15.2, deepspeed 0.16.9)."""


def find(case: Case) -> Iterator[Finding]:
    """Modules beside each script, and distributions that lie in two places."""
    launches = [launch for launch in case.launches if is_here(case, launch)]
    seen: set[str] = set()
    for launch in launches:
        for path, finding in _beside(case, launch):
            if path not in seen:
                seen.add(path)
                yield finding
    if launches or is_machine_alone(case):
        yield from _copies(case, launches[0] if launches else None)


def _beside(case: Case, launch: Launch) -> Iterator[tuple[str, Finding]]:
    """Local modules that hide what a program imports."""
    program = launch.target.program
    if isinstance(program, Unknown) or launch.target.kind not in ("script", "module"):
        return
    for place in _first_directories(case, launch):
        for module in sorted(_imported(program)):
            local = _local(case, launch, place, module)
            if local is None or _is_source_tree(case, launch, place, module):
                continue
            if not _by_others(program, module) and not _lacks(case, launch, program, module, local):
                continue
            if MODULES[module] in case.require(case.facts.packages):
                yield local, _beside_finding(launch, module, local)


def _is_safe(case: Case, launch: Launch) -> bool:
    """Whether Python is told not to look beside the script."""
    if variable(case, launch, "PYTHONSAFEPATH"):
        return True
    words = [word.value for layer in launch.layers if layer.launcher == "python" for word in layer.command_words]
    words += [word.value for layer in launch.layers if layer.launcher == "python" for word in layer.argument_words]
    return "-P" in words or "-I" in words


def _first_directories(case: Case, launch: Launch) -> Iterator[str]:
    """Where Python looks before the installed packages, as prefixes of paths; the working directory is empty.

    The script's directory, or with -m the working directory; then the relative entries of PYTHONPATH.
    """
    value = launch.target.value
    if value is not None and not _is_safe(case, launch):
        folder = "" if launch.target.kind == "module" else value.rpartition("/")[0]
        yield folder + "/" if folder else ""
    for entry in (variable(case, launch, "PYTHONPATH") or "").split(":"):
        if entry and not entry.startswith(("/", "~")):
            folder = entry.removeprefix("./").strip("/")
            yield "" if folder in ("", ".") else folder + "/"


def _imported(program: Program) -> set[str]:
    """The known modules that a program imports, itself or through a library."""
    direct = {module for module in MODULES if program.imports_any(module)}
    return direct | {module for module in MODULES if _by_others(program, module)}


def _by_others(program: Program, module: str) -> bool:
    """Whether a library that the program uses imports the module."""
    if program.first("trainer") is not None and module in _TRAINER_IMPORTS and program.imports_any("transformers"):
        return True
    return any(module in inner and name != module and program.imports_any(name) for name, inner in IMPORTED_BY.items())


def _local(case: Case, launch: Launch, place: str, module: str) -> str | None:
    """The file beside the program that Python would import, None when there is none or it cannot be told."""
    directory = launch.command.directory
    for path in (f"{place}{module}/__init__.py", f"{place}{module}.py"):
        if case.workspace.kind(path, directory) == "file":
            return path
    return None


def _is_source_tree(case: Case, launch: Launch, place: str, module: str) -> bool:
    """Whether the folder is a checkout of the library itself, which is meant to be imported."""
    names = {module, MODULES[module]}
    for name in ("setup.py", "pyproject.toml", "setup.cfg"):
        source = case.workspace.read(f"{place}{name}", "text", launch.command.directory)
        if not isinstance(source, Unknown):
            found = re.findall(r"\bname\s*=\s*['\"]?([\w.-]+)", source.text)
            if names & set(found):
                return True
    return False


def _lacks(case: Case, launch: Launch, program: Program, module: str, local: str) -> bool:
    """Whether the local module lacks something that the program takes from it."""
    if local == launch.target.value:
        return True
    source = case.workspace.read(local, "python", launch.command.directory)
    if isinstance(source, Unknown) or re.search(r"import\s+\*|__getattr__", source.text):
        return False
    folder = local.removesuffix("__init__.py") if local.endswith("/__init__.py") else None
    # What it takes from a module of its own name, it takes from itself.
    own = re.sub(rf"^\s*(?:from|import)\s+{re.escape(module)}\b(?!\.).*$", "", source.text, flags=re.MULTILINE)
    for name in _taken(program.source.text, module):
        submodule = folder is not None and any(
            case.workspace.kind(folder + path, launch.command.directory) in ("file", "directory")
            for path in (f"{name}.py", name)
        )
        if not submodule and not re.search(rf"\b{re.escape(name)}\b", own):
            return True
    return False


def _taken(text: str, module: str) -> set[str]:
    """The names that a program takes from a module: ``from M import a, b``, ``from M.sub import …``, ``M.name``."""
    name = re.escape(module)
    found = set(re.findall(rf"^\s*(?:from|import)\s+{name}\.(\w+)", text, re.MULTILINE))
    for group in re.findall(rf"^\s*from\s+{name}\s+import\s+\(?([\w\s,]+)", text, re.MULTILINE):
        found.update(part.split()[0] for part in group.split(",") if part.split())
    if re.search(rf"^\s*import\s+{name}\s*$", text, re.MULTILINE):
        found.update(re.findall(rf"(?<![\w.]){name}\.(\w+)", text))
    return found


def _beside_finding(launch: Launch, module: str, local: str) -> Finding:
    shown = local.removesuffix("__init__.py")
    word = launch.target.word
    return report(
        RULE,
        f"{shown} is imported instead of the installed {MODULES[module]}: Python looks there first, for the program "
        "and for every library that it uses.",
        launch.command.locate(word.span) if word is not None else None,
        subject=shown,
        fix=Fix(f"rename {shown}", commands=()),
        alternatives=(Fix("or keep Python from looking there (3.11 or newer)", commands=("export PYTHONSAFEPATH=1",)),),
    )


def _copies(case: Case, launch: Launch | None) -> Iterator[Finding]:
    """Distributions whose first copy lies in the user site or in PYTHONPATH and differs from the next."""
    copies = case.facts.package_copies
    if isinstance(copies, Unknown):
        return
    known = set(MODULES.values())
    for name, found in copies.items():
        if name not in known or len(found) < 2 or len({copy.version for copy in found}) < 2:
            continue
        origin = _hiding_place(case, launch, found[0])
        if origin is not None:
            yield _copy_finding(name, found, origin)


def _hiding_place(case: Case, launch: Launch | None, first: PackageCopy) -> str | None:
    """Why the first copy comes first although it does not belong to the environment; None when it does."""
    paths = (variable(case, launch, "PYTHONPATH") or "").split(":")
    if first.site.rstrip("/") in {path.rstrip("/") for path in paths if path}:
        return "PYTHONPATH"
    prefix = case.facts.python.prefix
    if isinstance(prefix, Unknown) or prefix in ("/usr", "/usr/local") or first.site.startswith(prefix + "/"):
        return None
    return "the user site" if "/.local/lib/python" in first.site else None


def _copy_finding(name: str, found: tuple[PackageCopy, ...], origin: str) -> Finding:
    first, second = found[0], next(copy for copy in found if copy.version != found[0].version)
    if origin == "PYTHONPATH":
        fix = Fix("take the directory out of PYTHONPATH")
    else:
        fix = Fix("keep Python out of the user site", commands=("export PYTHONNOUSERSITE=1",))
    return report(
        RULE,
        f"{name} {first.version} in {first.site} ({origin}) is imported, not {second.version} in {second.site}.",
        subject=f"{name} {first.version}",
        evidence=tuple(Evidence(f"{copy.version} in {copy.site}") for copy in found),
        fix=fix,
    )
