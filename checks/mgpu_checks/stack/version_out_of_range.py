"""Installed versions break what the frameworks demand of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.engine import is_training, trains_with_arguments
from mgpu_checks.stack import is_here, is_machine_alone, numbers, variable
from mgpu_checks.stack.demands import CHECKED_WHEN_IMPORTED, DEMANDS, TORCHVISION, Demand
from mgpu_checks.stack.torch_builds import same_cuda_command
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    is_before,
    read_requirement,
    report,
    satisfies,
)

_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(model, args).train()\n"
)
_SFT = {"sft.yaml": "stage: sft\ndo_train: true\nmodel_name_or_path: org/m\n"}
_NEWER = {
    "packages": {"torch": "2.6.0+cu124", "llamafactory": "0.9.3", "transformers": "4.55.0", "accelerate": "1.7.0"},
}
_PRE_RELEASE = {
    "packages": {"torch": "2.1.0a0+b5021ba", "accelerate": "0.25.0", "transformers": "4.36.2"},
    "torch_cuda": "12.1",
}

RULE = Rule(
    code="MGD504",
    slug="version-out-of-range",
    title="These versions do not go together",
    severity=Severity.ERROR,
    summary="An installed version lies outside what another package demands, at its start or in its metadata.",
    why=(
        "Frameworks compare versions when they start: LLaMA-Factory refuses a transformers, datasets, accelerate, peft "
        "or trl outside its range, transformers refuses huggingface_hub 1.0 until 5.0 and ignores a torch that is too "
        "old, accelerate's FSDP wants a torch of 2.1.0 (a pre-release such as 2.1.0a0 is older than that). These stop "
        "the job. What packages only declare in their metadata may still work: a warning where something is too old, "
        "or for torch, against which they are compiled; advice where a cap is exceeded."
    ),
    bad=(
        Example("LLaMA-Factory and a newer transformers", "llamafactory-cli train sft.yaml", _SFT, _NEWER),
        Example("the machine alone", facts=_NEWER),
        Example(
            "FSDP and a pre-release of torch",
            "torchrun --nproc_per_node 8 ft.py --fsdp 'full_shard auto_wrap' --output_dir out",
            {"ft.py": _TRAINER},
            _PRE_RELEASE,
        ),
        Example(
            "transformers 4 and huggingface_hub 1",
            "torchrun --nproc_per_node 8 ft.py",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.6.0+cu124", "transformers": "4.52.4", "huggingface-hub": "1.0.1"}},
        ),
        Example(
            "the Trainer and an old accelerate",
            "torchrun --nproc_per_node 8 ft.py",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.6.0+cu124", "transformers": "4.52.4", "accelerate": "0.20.3"}},
        ),
        Example(
            "DeepSpeed beyond LLaMA-Factory's range",
            "llamafactory-cli train sft.yaml",
            {
                "sft.yaml": "stage: sft\ndo_train: true\ndeepspeed: z2.json\n",
                "z2.json": '{"bf16": {"enabled": "auto"}}',
            },
            {"packages": {"torch": "2.6.0", "llamafactory": "0.9.3", "transformers": "4.52.4", "deepspeed": "0.17.2"}},
        ),
        Example(
            "an old DeepSpeed and a new torch",
            "deepspeed --num_gpus 8 ft.py --deepspeed ds.json",
            {"ft.py": _TRAINER, "ds.json": "{}"},
            {"packages": {"torch": "2.4.1+cu121", "deepspeed": "0.14.0", "transformers": "4.45.2"}},
        ),
        Example(
            "declared in metadata",
            facts={
                "packages": {"torch": "2.4.1+cu121", "vllm": "0.6.3"},
                "requirements": {"vllm": ["torch==2.4.0", "numpy<2.0.0"]},
            },
        ),
        Example(
            "declared and compared",
            facts={
                "packages": {"torch": "2.6.0", "transformers": "4.52.4", "tokenizers": "0.22.1"},
                "requirements": {"transformers": ["tokenizers<0.22,>=0.21"]},
            },
        ),
        Example(
            "declared, and it may work",
            facts={
                "packages": {"torch": "2.6.0", "peft": "0.15.2", "numpy": "2.2.0"},
                "requirements": {"peft": ["numpy<2.0"]},
            },
        ),
        Example(
            "declared, and too old",
            facts={
                "packages": {"torch": "2.6.0", "trl": "0.18.1", "accelerate": "1.2.0"},
                "requirements": {"trl": ["accelerate>=1.4.0"]},
            },
        ),
        Example(
            "the Trainer imports peft, and peft another accelerate",
            "torchrun --nproc_per_node 8 ft.py",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.1.2", "transformers": "4.37.2", "accelerate": "0.21.0", "peft": "0.17.1"}},
        ),
        Example(
            "transformers' models import torchvision",
            "torchrun --nproc_per_node 8 ft.py",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.5.1+cu124", "transformers": "4.52.4", "torchvision": "0.21.0+cu126"}},
        ),
        Example("torchvision for another torch", facts={"packages": {"torch": "2.6.0+cu124", "torchvision": "0.19.1"}}),
    ),
    good=(
        Example("all within their ranges", "llamafactory-cli train sft.yaml", _SFT),
        Example("the machine alone, all within their ranges"),
        Example(
            "LLaMA-Factory's check is switched off",
            "DISABLE_VERSION_CHECK=1 llamafactory-cli train sft.yaml",
            _SFT,
            _NEWER,
        ),
        Example(
            "the command uses other packages",
            "python a.py",
            {"a.py": "import torch\nprint(torch.ones(2).cuda())\n"},
            _NEWER,
        ),
        Example(
            "FSDP and the release",
            "torchrun --nproc_per_node 8 ft.py --fsdp full_shard --output_dir out",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.1.0+cu121", "accelerate": "0.25.0", "transformers": "4.36.2"}},
        ),
        Example(
            "the same pre-release with an accelerate that takes it",
            "torchrun --nproc_per_node 8 ft.py --fsdp full_shard --output_dir out",
            {"ft.py": _TRAINER},
            {"packages": {"torch": "2.1.0a0+b5021ba", "accelerate": "0.34.2", "transformers": "4.45.2"}},
        ),
        Example(
            "without FSDP the pre-release is fine",
            "torchrun --nproc_per_node 8 ft.py",
            {"ft.py": _TRAINER},
            _PRE_RELEASE,
        ),
        Example(
            "the framework's own check takes more than its metadata declare",
            facts={
                "packages": {"torch": "2.13.0", "llamafactory": "0.9.5", "accelerate": "1.15.0"},
                "requirements": {"llamafactory": ["accelerate<=1.11.0,>=1.3.0"]},
            },
        ),
        Example(
            "a checkout between two releases, whose demands are not known",
            "llamafactory-cli train sft.yaml",
            _SFT,
            {"packages": {**_NEWER["packages"], "llamafactory": "0.9.3.dev0"}},
        ),
        Example(
            "peft is not there for a program without transformers",
            "torchrun --nproc_per_node 8 a.py",
            {"a.py": "import torch\nprint(torch.ones(2).cuda())\n"},
            {"packages": {"torch": "2.1.2", "accelerate": "0.21.0", "peft": "0.17.1"}},
        ),
        Example(
            "an overcautious cap",
            facts={
                "packages": {"torch": "2.6.0", "llamafactory": "0.9.3", "tokenizers": "0.21.4"},
                "requirements": {"llamafactory": ["tokenizers<=0.21.1,>=0.19.0"]},
            },
        ),
        Example(
            "an optional extra",
            facts={
                "packages": {"torch": "2.4.1+cu121", "vllm": "0.6.3"},
                "requirements": {"vllm": ['torch==2.4.0; extra == "old"']},
            },
        ),
        Example(
            "of a package that has nothing to do with the job",
            facts={
                "packages": {"torch": "2.4.1", "some-viewer": "1.0"},
                "requirements": {"some-viewer": ["torch<2.0"]},
            },
        ),
        Example("a container has its own packages", "docker run image llamafactory-cli train a.yaml", facts=_NEWER),
    ),
    sources=(
        Reference(
            "llamafactory 0.7.1, 0.8.0 … 0.8.3 and 0.9.0 … 0.9.5, extras/misc.py check_dependencies()",
            "require_version() for transformers, datasets, accelerate, peft and trl, unless DISABLE_VERSION_CHECK=1",
        ),
        Reference(
            "transformers 4.33.3 … 5.23.0, dependency_versions_check.py",
            "compares huggingface_hub, tokenizers, safetensors, numpy and others when it is imported",
        ),
        Reference(
            "transformers 4.37.2 … 5.23.0, training_args.py _setup_devices()",
            "Using the `Trainer` with `PyTorch` requires `accelerate>=…` (ACCELERATE_MIN_VERSION)",
        ),
        Reference(
            "transformers 4.52.4 … 5.23.0, utils/import_utils.py",
            "Disabling PyTorch because PyTorch >= … is required",
        ),
        Reference(
            "accelerate 0.25.0 … 0.33.0, accelerator.py Accelerator.__init__() and utils/constants.py",
            "FSDP requires PyTorch >= 2.1.0; from 0.34.2 on 2.1.0.a0+32f93b1",
        ),
        Reference(
            "transformers 4.36.2, training_args.py __post_init__()",
            "--fsdp sets ACCELERATE_USE_FSDP, which makes accelerate ask",
        ),
        Reference(
            "deepspeed 0.9.5, 0.14.0, 0.14.1 and 0.14.3, elasticity/elastic_agent.py; torch 2.3.1 and 2.4.0, "
            "distributed/elastic/agent/server/api.py",
            "imports log or _get_socket_with_port, which torch 2.4.0 no longer has; not so from 0.14.4 on",
        ),
        Reference(
            "peft 0.15.2, utils/loftq_utils.py; accelerate 0.31.0, utils/memory.py",
            "imports clear_device_cache, which this accelerate does not have",
        ),
        Reference(
            "pyarrow 25.0.0, 26.0.0 and 26.0.1 with numpy 1.26.4",
            "from 26 on the import fails: pyarrow requires NumPy 2.0 or newer, found 1.26.4",
            ran=True,
        ),
        Reference("torchvision 0.15.2 … 0.24.1, metadata", "each is built against one release of torch (torch==2.4.1)"),
    ),
    fix="install versions that go together",
    signatures=(
        Signature(
            r"ImportError: \S+ is required for a normal functioning of this module, but found",
            "transformers 4.28.1 … 5.23.0, utils/versions.py _compare_versions()",
            "ImportError: transformers>=4.45.0,<=4.52.4,!=4.46.0,!=4.46.1,!=4.46.2,!=4.46.3,!=4.47.0,!=4.47.1,!=4.48.0,"
            "!=4.52.0 is required for a normal functioning of this module, but found transformers==4.55.0.",
        ),
        Signature(
            r"FSDP2? requires PyTorch >= ",
            "accelerate 0.25.0, accelerator.py Accelerator.__init__()",
            "ValueError: FSDP requires PyTorch >= 2.1.0",
        ),
        Signature(
            r"Using the `Trainer` with `PyTorch` requires `accelerate>=",
            "transformers 4.37.2, training_args.py _setup_devices()",
            "ImportError: Using the `Trainer` with `PyTorch` requires `accelerate>=0.21.0`: Please run "
            "`pip install transformers[torch]` or `pip install accelerate -U`",
        ),
        Signature(
            r"Disabling PyTorch because PyTorch >= \S+ is required but found",
            "transformers 5.0.0, utils/import_utils.py is_torch_available()",
            "Disabling PyTorch because PyTorch >= 2.2 is required but found 2.1.2+cu121",
        ),
        Signature(
            r"cannot import name '(?:log|_get_socket_with_port)' from 'torch\.distributed\.elastic\.agent\.server",
            "deepspeed 0.14.0 and 0.14.1, elasticity/elastic_agent.py, with torch 2.4.0",
            "ImportError: cannot import name 'log' from 'torch.distributed.elastic.agent.server.api' "
            "(/opt/env/lib/python3.10/site-packages/torch/distributed/elastic/agent/server/api.py)",
        ),
        Signature(
            r"pyarrow requires NumPy 2\.0 or newer, found",
            "pyarrow 26.0.1, __init__.py",
            "ImportError: pyarrow requires NumPy 2.0 or newer, found 1.26.4",
        ),
        Signature(
            r"cannot import name 'clear_device_cache' from 'accelerate\.utils\.memory'",
            "peft 0.15.2, utils/loftq_utils.py, with accelerate 0.31.0",
            "ImportError: cannot import name 'clear_device_cache' from 'accelerate.utils.memory' "
            "(/opt/env/lib/python3.10/site-packages/accelerate/utils/memory.py)",
        ),
        Signature(
            r"DeepSpeed version must be >= ",
            "accelerate 1.7.0, accelerator.py Accelerator.__init__()",
            "ImportError: DeepSpeed version must be >= 0.9.3. Please update DeepSpeed.",
        ),
        Signature(
            r"operator torchvision::nms does not exist",
            "torchvision 0.19.1 with another torch, _meta_registrations.py",
            "RuntimeError: operator torchvision::nms does not exist",
        ),
        Signature(
            r"^(?:\w+\.)*TypeError: (?:(?:Seq2Seq)?TrainingArguments|\w*Trainer|Accelerator|(?:SFT|DPO|GRPO|PPO"
            r"|KTO|ORPO|Reward)Config)\.\w+\(\) got an unexpected keyword argument '",
            "Python 3.11, a program written for another release of transformers, accelerate or trl",
            "TypeError: TrainingArguments.__init__() got an unexpected keyword argument 'evaluation_strategy'",
        ),
        Signature(
            r"numpy\.core\.multiarray failed to import|numpy\.dtype size changed, may indicate binary incompatibility",
            "numpy 2.1.0 under extensions built for numpy 1",
            "ImportError: numpy.core.multiarray failed to import",
        ),
        Signature(
            r"^ImportError: cannot import name '\w+' from '(?:transformers|accelerate|peft|trl|torch|torchvision"
            r"|huggingface_hub|datasets|deepspeed|vllm|tokenizers|flash_attn|bitsandbytes)\b",
            "Python 3.11, a package written for another release of the one that it imports from",
            "ImportError: cannot import name 'is_torch_fx_available' from 'transformers.utils.import_utils' "
            "(/opt/env/lib/python3.11/site-packages/transformers/utils/import_utils.py)",
            weak=True,
        ),
        Signature(
            r"but Transformers does not recognize this architecture",
            "transformers 4.37.2 to 5.23.0, models/auto/configuration_auto.py: a model newer than the release",
            "ValueError: The checkpoint you are trying to load has model type `qwen3` but Transformers does not "
            "recognize this architecture.",
        ),
        Signature(
            r"CONFIG_MAPPING\[config_dict\[.model_type.\]\]",
            "transformers 4.28.1 to 4.36.2, models/auto/configuration_auto.py, the last line before KeyError",
            '    config_class = CONFIG_MAPPING[config_dict["model_type"]]',
            weak=True,
        ),
        Signature(
            r"PyTorch and torchvision were compiled with different CUDA major versions",
            "torchvision 0.21.0 and 0.24.1, extension.py",
            "RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions.",
        ),
    ),
)

DECLARING = (
    "torch", "torchvision", "torchaudio", "transformers", "accelerate", "deepspeed", "llamafactory", "peft", "trl",
    "datasets", "vllm", "sglang", "ms-swift", "bitsandbytes", "axolotl", "lightning", "unsloth", "pyarrow",
)  # fmt: skip
"""Distributions whose declared requirements are judged."""

DECLARED = frozenset(DECLARING) | {"huggingface-hub", "tokenizers", "safetensors", "numpy", "triton", "xformers"}
"""Distributions for which what others declare is judged; the rest breaks too rarely to be worth a word."""

CAPS_THAT_COUNT = frozenset(
    {"torch", "transformers", "accelerate", "peft", "trl", "datasets", "huggingface-hub", "numpy"}
)
"""Those of them for which a cap is worth a word; others are capped by habit, and newer ones work."""

_IMPORTED_AS = {"ms-swift": "swift"}


def find(case: Case) -> Iterator[Finding]:
    """What each launch uses, else the whole environment, against what its packages demand."""
    launches: list[Launch | None] = [launch for launch in case.launches if is_here(case, launch)]
    if is_machine_alone(case):
        launches = [None]
    if not launches:
        return
    packages = case.require(case.facts.packages)
    seen: set[tuple[str, str]] = set()
    for launch in launches:
        for finding, pair in _broken(case, launch, packages):
            if pair not in seen:
                seen.add(pair)
                yield finding


def _broken(
    case: Case, launch: Launch | None, packages: Mapping[str, str]
) -> Iterator[tuple[Finding, tuple[str, str]]]:
    used = frozenset(_used(launch, packages))
    moments = frozenset(_moments(launch, used))
    unchecked = (variable(case, launch, "DISABLE_VERSION_CHECK") or "").lower() in ("true", "y", "1")
    judged: set[tuple[str, str]] = set()
    for demand in DEMANDS:
        if demand.of not in used or not _is_meant(demand, packages[demand.of]):
            continue
        found = packages.get(demand.needs)
        if demand.when == "llamafactory":
            judged.add((demand.of, demand.needs))
        if found is None or demand.when not in moments or (demand.silenced and unchecked):
            continue
        if _breaks(found, demand.specifiers):
            yield _demanded(launch, demand, packages[demand.of], found), (demand.of, demand.needs)
    for of, needs, specifiers in _declared(case, used, packages):
        # A framework that compares versions itself knows better than its metadata: llamafactory 0.9.5 takes
        # accelerate up to 1.15.0 and declares 1.11.0.
        if (
            (of, needs) not in judged
            and not (of == "llamafactory" and unchecked)
            and _breaks(packages[needs], specifiers)
        ):
            yield _declared_finding(of, packages[of], needs, packages[needs], specifiers), (of, needs)


def _breaks(version: str, specifiers: str) -> bool:
    return satisfies(version, specifiers) is False


def _is_meant(demand: Demand, version: str) -> bool:
    """Whether a demand is that of the installed release; one before the first release of a span is of neither."""
    if is_before(version, *demand.since) is not False:
        return False
    if demand.until is None:
        return True
    own = numbers(version)
    return is_before(version, *demand.until) is True and own[: len(demand.until)] != demand.until


def _used(launch: Launch | None, packages: Mapping[str, str]) -> Iterator[str]:
    """The installed distributions that a launch surely imports; without a command those that jobs would."""
    if launch is None:
        yield from (name for name in DECLARING if name in packages)
        return
    program = launch.target.program
    framework = launch.target.framework
    trains = trains_with_arguments(launch)
    engine = launch.engine.known
    for name in DECLARING:
        if name not in packages:
            continue
        module = _IMPORTED_AS.get(name, name.replace("-", "_"))
        imported = not isinstance(program, Unknown) and program.imports_any(module)
        with_framework = framework in (name, module) or (framework == "llamafactory" and name in _LLAMAFACTORY_USES)
        launched = any(layer.launcher == name for layer in launch.layers)
        launched = launched or (engine is not None and engine.name == name)
        through_models = name == "torchvision" and _imports_models(launch, packages)
        if imported or with_framework or launched or through_models or (trains and name in _TRAINER_USES):
            yield name


_TRAINER_USES = ("transformers", "accelerate", "peft")
"""transformers 4.30.2 … 5.0.0, trainer.py: imports peft wherever it is installed."""


def _imports_models(launch: Launch, packages: Mapping[str, str]) -> bool:
    """Whether transformers' models are imported, which since 4.48.3 import torchvision wherever it is installed.

    transformers 4.48.3, 4.52.4 and 5.0.0: modeling_utils.py, loss/loss_utils.py, image_transforms.py, image_utils.py.
    """
    version = packages.get("transformers")
    if version is None or is_before(version, 4, 48, 3) is not False:
        return False
    return trains_with_arguments(launch) or launch.target.framework in ("llamafactory", "vllm", "swift", "trl")


_LLAMAFACTORY_USES = ("transformers", "accelerate", "peft", "trl", "datasets", "pyarrow")


def _moments(launch: Launch | None, used: frozenset[str]) -> Iterator[str]:
    """When the demands of a launch are made."""
    yield "import"
    if launch is None:
        yield from ("llamafactory",)
        return
    if launch.target.framework == "llamafactory" and launch.target.subcommand not in ("version", "help", "env"):
        yield "llamafactory"
    engine = launch.engine.known
    with_trainer = trains_with_arguments(launch) or is_training(launch)
    if with_trainer:
        yield "trainer"
    if engine is not None and engine.name == "deepspeed" and with_trainer:
        yield "deepspeed"
    if engine is not None and engine.name == "fsdp" and (with_trainer or "accelerate" in used):
        yield "fsdp"
        if _fsdp_version(launch) == "2":
            yield "fsdp2"


def _fsdp_version(launch: Launch) -> str | None:
    layer = launch.layer("accelerate")
    if layer is None:
        return None
    option = layer.option("fsdp_version")
    if option is not None:
        return option.value
    value = layer.config.get("fsdp_config", "fsdp_version") if layer.config is not None else None
    return None if value is None else str(value)


def _demanded(launch: Launch | None, demand: Demand, version: str, found: str) -> Finding:
    wanted = f"{demand.needs}{demand.specifiers}"
    least = demand.specifiers.partition(">=")[2].partition(",")[0]
    says = demand.says.format(wanted=wanted, found=f"{demand.needs}=={found}", version=found, least=least)
    early = " (a pre-release is older than its release)" if is_before(found, *numbers(found)) else ""
    effect = "models cannot be loaded" if says.startswith("Disabling") else "it stops at its start"
    if says.startswith("ImportError: ") and demand.when == "import":
        effect = "importing it fails"
    wanted_here = f"{demand.of} {version} wants {demand.needs} {demand.specifiers}"
    if demand.when.startswith("fsdp"):
        wanted_here = f"FSDP with {demand.of} {version} wants {demand.needs} {demand.specifiers}"
    return report(
        RULE,
        f"{wanted_here}, and {found} is installed{early}: {effect} ({_shortened(says)}).",
        _place(launch, demand),
        subject=f"{demand.needs} {found}",
        fix=_remedy(demand, found, wanted, least),
    )


def _remedy(demand: Demand, found: str, wanted: str, least: str) -> Fix:
    """What to install: never just another torch, which would bring another CUDA."""
    if demand.needs != "torch":
        return Fix(f"install a fitting {demand.needs}", commands=(f"pip install '{wanted}'",))
    if demand.of == "deepspeed":
        return Fix(
            "update deepspeed, which works with this torch from 0.14.4 on",
            commands=("pip install 'deepspeed>=0.14.4'",),
        )
    if demand.when == "fsdp" and satisfies(found, ">=2.1.0.a0"):
        return Fix(
            "update accelerate, which takes pre-releases from 0.34.2 on", commands=("pip install 'accelerate>=0.34.2'",)
        )
    command = same_cuda_command("torch", least, found)
    older = f", or an older {demand.of}" if demand.of == "transformers" else ""
    return Fix(f"install torch {least} or newer for the same CUDA{older}", commands=(command,) if command else ())


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "…"


def _place(launch: Launch | None, demand: Demand) -> Location | None:
    """The words that ask for FSDP or DeepSpeed; None for demands that nothing in the text makes."""
    if launch is None or demand.when not in ("fsdp", "fsdp2", "deepspeed"):
        return None
    argument = launch.target.argument(demand.when.rstrip("2"))
    return launch.engine.origin.location or (launch.command.locate(argument.span) if argument is not None else None)


def _declared(case: Case, used: frozenset[str], packages: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What the metadata of the used distributions declare about installed ones, markers left out."""
    known = case.facts.package_requirements
    declared = {} if isinstance(known, Unknown) else known
    for of in sorted(used):
        for line in declared.get(of, ()):
            requirement = read_requirement(line)
            if requirement is None or requirement.marker is not None or requirement.name not in DECLARED:
                continue
            found = packages.get(requirement.name)
            if found is not None and _counts(of, requirement.name, found, requirement.specifiers):
                yield of, requirement.name, requirement.specifiers
    vision = packages.get("torchvision")
    if vision is not None and "torch" in packages and "torchvision" in used and "torchvision" not in declared:
        release = TORCHVISION.get(numbers(vision)[:2])
        if release is not None:
            yield "torchvision", "torch", f"=={release[0]}.{release[1]}.*"


def _counts(of: str, needs: str, found: str, specifiers: str) -> bool:
    return needs in CAPS_THAT_COUNT or of == "transformers" or _is_too_old(found, specifiers)


def _is_too_old(found: str, specifiers: str) -> bool:
    """Whether a lower bound is broken, not only a cap that may be overcautious."""
    clauses = (clause.strip() for clause in specifiers.split(","))
    lower = (clause.lstrip("=~>") for clause in clauses if clause.startswith((">", "~=", "==")))
    return any(satisfies(found, f">={wanted.strip().removesuffix('.*')}") is False for wanted in lower)


def _declared_finding(of: str, version: str, needs: str, found: str, specifiers: str) -> Finding:
    checked = of == "transformers" and needs in CHECKED_WHEN_IMPORTED and is_before(version, 4, 33, 3) is False
    if checked:
        severity, effect = Severity.ERROR, f"importing {of} stops with an ImportError"
    elif of == "torchvision":
        severity, effect = Severity.WARNING, 'its import fails with "operator torchvision::nms does not exist"'
    elif needs == "torch":
        severity, effect = Severity.WARNING, f"{of} was not made for that torch"
    elif of == "llamafactory" and needs in ("transformers", "datasets", "accelerate", "peft", "trl"):
        severity, effect = Severity.WARNING, "LLaMA-Factory compares the two when it starts, and most likely stops"
    elif _is_too_old(found, specifiers):
        severity, effect = Severity.WARNING, f"{of} may use what is not there yet"
    else:
        severity, effect = Severity.ADVICE, "it may work, but nobody promises it"
    return report(
        RULE,
        f"{of} {version} declares {needs} {specifiers}, and {found} is installed: {effect}.",
        subject=f"{needs} {found}",
        severity=severity,
        fix=_together(of, needs, found, specifiers),
    )


def _together(of: str, needs: str, found: str, specifiers: str) -> Fix:
    if needs != "torch":
        return Fix(f"install a {needs} that {of} declares", commands=(f"pip install '{needs}{specifiers}'",))
    fitting = next((vision for vision, torch in TORCHVISION.items() if torch == numbers(found)[:2]), None)
    if of != "torchvision" or fitting is None:
        return Fix(f"install a {of} that is made for torch {found}", commands=("pip check",))
    version = ".".join(map(str, fitting)) + ".*"
    command = same_cuda_command("torchvision", version, found) or f'pip install --no-deps "torchvision=={version}"'
    return Fix(f"install the torchvision of torch {found}", commands=(command,))
