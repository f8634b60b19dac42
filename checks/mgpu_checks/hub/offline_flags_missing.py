"""A model is loaded from disk on a machine without the hub, and nothing tells the libraries to stay off the network."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import (
    DATASETS,
    INVENTED,
    Given,
    is_for_transformers,
    is_local_path,
    is_offline,
    is_offline_machine,
    models,
    sets_itself,
    value_of,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Unknown,
    insert,
    report,
)

NO_NETWORK = {"network": {"huggingface.co": False}}

RULE = Rule(
    code="MGD401",
    slug="offline-flags-missing",
    title="Nothing keeps the job off the network",
    severity=Severity.WARNING,
    summary="The model lies on disk, the machine cannot reach the hub, and HF_HUB_OFFLINE is not set for the job.",
    why=(
        "Even with a local model, transformers, peft and datasets ask the hub for small files that may be missing "
        "(`generation_config.json`, `adapter_config.json`, chat templates, the data set's script). Without a network "
        "each question waits for its time-out and is tried again, so that every rank starts minutes late or stops "
        "with a connection error. `HF_HUB_OFFLINE=1` answers them at once."
    ),
    bad=(
        Example(
            "a model by absolute path",
            "torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            facts=NO_NETWORK,
        ),
        Example(
            "a model directory beside the script",
            "accelerate launch --multi_gpu --num_processes 4 train.py --model_name_or_path models/qwen",
            files={"models/qwen/config.json": "{}", "train.py": "print()\n"},
            facts=NO_NETWORK,
        ),
        Example(
            "named in LLaMA-Factory's file",
            "FORCE_TORCHRUN=1 llamafactory-cli train sft.yaml",
            files={"sft.yaml": "model_name_or_path: /models/llama-3-8b\nstage: sft\n"},
            facts=NO_NETWORK,
        ),
        Example(
            "only data sets are kept off",
            "HF_DATASETS_OFFLINE=1 torchrun --nproc_per_node 4 train.py --model_name_or_path ./llama",
            facts=NO_NETWORK,
        ),
    ),
    good=(
        Example(
            "switched on",
            "HF_HUB_OFFLINE=1 torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            facts=NO_NETWORK,
        ),
        Example(
            "the older name does as well",
            "TRANSFORMERS_OFFLINE=1 torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            facts=NO_NETWORK,
        ),
        Example(
            "a script that asks no hub", "torchrun --nproc_per_node 4 train.py --model ./best.pth", facts=NO_NETWORK
        ),
        Example(
            "inherited",
            "torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            facts={**NO_NETWORK, "env": {"HF_HUB_OFFLINE": "1"}},
        ),
        Example(
            "nothing says that there is no network",
            "torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
        ),
        Example(
            "the hub answers",
            "torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            facts={"network": {"huggingface.co": True}},
        ),
        Example(
            "the script sets it",
            "torchrun --nproc_per_node 4 train.py --model_name_or_path /models/qwen2.5-7b",
            files={"train.py": "import os\nos.environ['HF_HUB_OFFLINE'] = '1'\nimport transformers\n"},
            facts=NO_NETWORK,
        ),
    ),
    sources=(
        Reference(
            "huggingface_hub 0.20.3 and 2.4.0, constants.py",
            "HF_HUB_OFFLINE, else TRANSFORMERS_OFFLINE, keeps every request off the network",
        ),
        Reference(
            "transformers 4.45.2 … 4.57.6, utils/hub.py",
            "is_offline_mode() is huggingface_hub's constant; 4.40.2 still read TRANSFORMERS_OFFLINE itself",
        ),
    ),
    fix="set HF_HUB_OFFLINE=1 for the job",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Launches with a model on disk, without a switch, on a machine that cannot reach the hub."""
    if not is_offline_machine(case):
        return
    for launch in case.launches:
        if is_offline(case, launch) is not False or sets_itself(launch) or _says_something(case, launch):
            continue
        model = next((given for given in models(launch) if _is_on_disk(case, launch, given)), None)
        if model is not None:
            yield _finding(launch, model)


def _says_something(case: Case, launch: Launch) -> bool:
    """Whether a switch is set without effect: that is for the rule about half-set switches, or for a missing export."""
    return any(
        value_of(case, launch, name) is not None or launch.command.shell_variable(name)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ) or any(variable.name != DATASETS and INVENTED.fullmatch(variable.name) for variable in launch.command.environment)


def _is_on_disk(case: Case, launch: Launch, model: Given) -> bool:
    if not is_for_transformers(launch, model):
        return False
    if is_local_path(model.text):
        return True
    kind = case.workspace.kind(model.text, launch.command.directory)
    return not isinstance(kind, Unknown) and kind == "directory"


def _finding(launch: Launch, model: Given) -> Finding:
    command = launch.command
    words = command.wrappers[0].words if command.wrappers else command.words
    edits: tuple[Edit, ...] = ()
    if words and words[0].origin is None and not command.wrappers:
        edits = (insert(command.source, words[0].span.start, "HF_HUB_OFFLINE=1 "),)
    extra = " HF_DATASETS_OFFLINE covers data sets only." if command.variable(DATASETS) else ""
    return report(
        RULE,
        f"The model {model.text} lies on disk and the machine cannot reach huggingface.co, but HF_HUB_OFFLINE is not "
        f"set: each file that the libraries look for in vain waits for the network.{extra}",
        model.location,
        evidence=("the facts say that huggingface.co does not answer",),
        fix=Fix("set HF_HUB_OFFLINE=1 for this command", edits, safe=False),
    )
