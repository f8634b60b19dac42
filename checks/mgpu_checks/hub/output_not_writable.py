"""What the job is to write cannot be written: no right to, no room, or a folder that is refused as it is."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import TrainingArguments, is_training, training_arguments
from mgpu_checks.hub import is_for_transformers, is_local_path, is_offline, may_come_from_before, models
from mgpu_checks.launch import version_at_least
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    ModelInfo,
    Reference,
    Rule,
    Severity,
    Signature,
    Storage,
    Unknown,
    pattern,
    report,
)

_TRAIN = "torchrun --nproc_per_node 2 train.py --output_dir "
_FILES = {"train.py": "import torch\n"}
_SFT = {
    "sft.yaml": "model_name_or_path: org/base\nstage: sft\ndo_train: true\ndataset: demo\noutput_dir: out\n",
    "out/adapter_model.safetensors": "x",
}
_FULL = (
    "llamafactory-cli train --stage sft --do_train true --finetuning_type full --model_name_or_path /models/base "
    "--dataset demo --template default --output_dir /data/out"
)
_MODEL = {"models": {"/models/base": {"parameters": 8.0e9, "dtype": "bfloat16"}}}

RULE = Rule(
    code="MGD407",
    slug="output-not-writable",
    title="The output cannot be written",
    severity=Severity.ERROR,
    summary="the output or cache directory is not writable, is a file, has no room, or is refused as not empty",
    why=(
        "Nothing is written before the first checkpoint, so a full disk or a missing right is often found after hours: "
        "'Permission denied', 'No space left on device'. LLaMA-Factory refuses at the start an output directory that "
        "already holds a model: 'Output directory already exists and is not empty.'"
    ),
    bad=(
        Example(
            "nobody may write there",
            _TRAIN + "/data/out",
            _FILES,
            {"paths": {"/data/out": {"mode": "dr-xr-xr-x"}}},
        ),
        Example("a file of that name", _TRAIN + "out", {**_FILES, "out": "x\n"}),
        Example("LLaMA-Factory's output holds a model already", "llamafactory-cli train sft.yaml", _SFT),
        Example(
            "no room for the weights",
            _FULL,
            {},
            {**_MODEL, "paths": {"/data/out": {"mode": "drwxrwxrwx", "free_gib": 3}}},
        ),
        Example(
            "the disk is full",
            _TRAIN + "/data/out",
            _FILES,
            {"paths": {"/data/out": {"mode": "drwxrwxrwx", "free_gib": 0}}},
        ),
        Example(
            "a script that refuses it itself",
            "torchrun --nproc_per_node 2 run.py --do_train --output_dir out",
            {
                "out/notes.txt": "x\n",
                "run.py": (
                    "from transformers.trainer_utils import get_last_checkpoint\n"
                    "if os.path.isdir(a.output_dir) and a.do_train and not a.overwrite_output_dir:\n"
                    "    last = get_last_checkpoint(a.output_dir)\n"
                    "    if last is None and len(os.listdir(a.output_dir)) > 0:\n"
                    "        raise ValueError('Output directory already exists and is not empty.')\n"
                ),
            },
        ),
    ),
    good=(
        Example("an empty directory", _TRAIN + "out", {**_FILES, "out/x/y": ""}),
        Example("overwrite is said", "llamafactory-cli train sft.yaml overwrite_output_dir=true", _SFT),
        Example(
            "a reward model of all weights is never resumed, and not refused",
            "llamafactory-cli train rm.yaml",
            {"rm.yaml": _SFT["sft.yaml"].replace("sft", "rm") + "finetuning_type: full\n", "out/model.safetensors": ""},
        ),
        Example("only prediction", "llamafactory-cli train p.yaml", {**_SFT, "p.yaml": "do_predict: true\n"}),
        Example("removed by the command above", "rm -rf out\nllamafactory-cli train sft.yaml", _SFT),
        Example(
            "whose directory it is, is not known",
            _TRAIN + "/data/out",
            _FILES,
            {"paths": {"/data/out": {"mode": "drwxr-xr-x", "free_gib": 900}}},
        ),
        Example(
            "an adapter is small",
            _FULL.replace("full", "lora"),
            {},
            {**_MODEL, "paths": {"/data/out": {"mode": "drwxrwxrwx", "free_gib": 3}}},
        ),
        Example("a directory of which nothing is known", _TRAIN + "/data/out", _FILES),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3, 0.9.0, 0.9.1, 0.9.2, 0.9.3, 0.9.4, 0.9.5, hparams/parser.py get_train_args()",
            "do_train, an output_dir without checkpoint-N folders that holds adapter_model.* or model weights, neither "
            "overwrite_output_dir nor resume_from_checkpoint: ValueError; not for rm and ppo with full or freeze",
        ),
        Reference("llamafactory 0.7.1, hparams/parser.py", "the same for any file but trainer_config.yaml"),
        Reference(
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py",
            "with a checkpoint-N folder inside: 'Resuming training from …', without being asked",
        ),
        Reference("transformers 4.52.4, trainer.py", "os.makedirs(output_dir, exist_ok=True): a file is refused"),
        Reference("Python 3.11, os.access()", "asks the kernel, so read-only file systems count as well", ran=True),
    ),
    fix="Name a directory that may be written, with room for the checkpoints",
    signatures=(
        Signature(
            r"Output directory .*already exists and is not empty",
            "llamafactory 0.7.1 to 0.9.5, hparams/parser.py",
            "ValueError: Output directory already exists and is not empty. Please set `overwrite_output_dir`.",
        ),
        Signature(
            r"\[Errno 28\] No space left on device",
            "Python 3.11, a full file system",
            "OSError: [Errno 28] No space left on device",
        ),
        Signature(
            r"No space left on device \(os error 28\)",
            "safetensors 0.8.0, save_file() on a full file system",
            "safetensors._safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on "
            "device (os error 28)",
        ),
        Signature(
            r"inline_container\.cc:\d+\] \. unexpected pos \d+ vs \d+",
            "torch 2.13.0, torch.save() on a full file system",
            "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        ),
        Signature(
            r"\[Errno 30\] Read-only file system",
            "Python 3.11, a read-only file system",
            "OSError: [Errno 30] Read-only file system: 'out'",
        ),
        Signature(
            r"PermissionError: \[Errno 13\] Permission denied: ",
            "Python 3.11, a directory without the right to write",
            "PermissionError: [Errno 13] Permission denied: '/data/out/checkpoint-500'",
            weak=True,
        ),
        Signature(
            r"Disk quota exceeded|kind: StorageFull",
            "Python 3.11, errno EDQUOT; safetensors 0.3 to 0.5, IoError",
            "OSError: [Errno 122] Disk quota exceeded: '/home/me/out/model.safetensors'",
        ),
    ),
)

_OUTPUTS = ("output_dir", "export_dir", "logging_dir")
_ALMOST_FULL_GIB = 0.05
"""Below this not even an adapter, its optimizer's state and the log fit."""

_BYTES = {"float32": 4, "float": 4, "fp32": 4, "int8": 1, "int4": 1}
_CHECKPOINT = pattern(r"checkpoint-\d+")
_REFUSED = frozenset(
    {
        "adapter_model.safetensors",
        "adapter_model.bin",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    }
)
"""LLaMA-Factory's CHECKPOINT_NAMES (extras/constants.py, 0.8.3 to 0.9.5)."""

_REFUSES = "already exists and is not empty"


def find(case: Case) -> Iterator[Finding]:
    """What stands in the way of writing, for each directory that a launch writes to."""
    unknown: Unknown | None = None
    for launch in case.launches:
        given = training_arguments(launch)
        for name, path, place in _places(launch, given):
            directory = launch.command.directory
            storage = case.workspace.storage(path, directory)
            if isinstance(storage, Unknown):
                unknown = storage
            fault = _not_a_directory(case, launch, name, path, place)
            if fault is None and not isinstance(storage, Unknown):
                fault = _forbidden(case, name, path, place, storage) or _full(case, launch, given, name, place, storage)
            if fault is None and name == "output_dir":
                fault = _in_use(case, launch, given, path, place)
            if fault is not None:
                yield fault
        yield from _cache(case, launch)
    if unknown is not None:
        case.require(unknown)


def _places(launch: Launch, given: TrainingArguments) -> Iterator[tuple[str, str, Location]]:
    """The directories that are written to: the argument's name, the path, and where it is given."""
    for name in _OUTPUTS:
        argument = given.get(name)
        if argument is not None and argument.text:
            yield name, argument.text, argument.location
    for layer in launch.layers:
        option = layer.option("log_dir")
        if option is not None and option.value:
            yield option.flag, option.value, launch.command.locate(option.span)


def _not_a_directory(case: Case, launch: Launch, name: str, path: str, place: Location) -> Finding | None:
    if case.workspace.kind(path, launch.command.directory) != "file" or may_come_from_before(case, launch, path):
        return None
    return report(
        RULE,
        f"{path}, the {name}, is a file: no directory can be made in its place.",
        place,
        subject=path,
        fix=Fix("name another directory, or move the file"),
    )


def _forbidden(case: Case, name: str, path: str, place: Location, storage: Storage) -> Finding | None:
    in_the_way = storage.kind == "file" and not storage.is_whole
    if storage.writable is not False and not in_the_way:
        return None
    mode = f" ({storage.mode})" if isinstance(storage.mode, str) else ""
    if in_the_way:
        message = f"{path}, the {name}, cannot be made: {storage.existing} is a file."
    elif storage.is_whole:
        message = f"{path}, the {name}, may not be written to{mode}: the first checkpoint ends with Permission denied."
    else:
        message = f"{path}, the {name}, cannot be made: {storage.existing}{mode} may not be written to."
    return report(
        RULE,
        message,
        place,
        subject=path,
        severity=_severity(case, storage),
        fix=Fix("name a directory of your own"),
    )


def _severity(case: Case, storage: Storage) -> Severity:
    """Of another machine, a directory in between may be there that nobody has mentioned, with rights of its own."""
    return Severity.ERROR if storage.is_whole or case.facts.origin == "this machine" else Severity.WARNING


def _full(
    case: Case, launch: Launch, given: TrainingArguments, name: str, place: Location, storage: Storage
) -> Finding | None:
    free = storage.free_gib
    if isinstance(free, Unknown):
        return None
    if free < _ALMOST_FULL_GIB:
        return report(
            RULE,
            f"{free * 1024:.0f} MiB are free at {storage.existing}, where the {name} lies: nothing can be saved there.",
            place,
            subject=storage.existing,
            severity=_severity(case, storage),
            fix=Fix("free some room, or name a directory on another disk"),
        )
    needed = _weights_gib(case, launch, given, name)
    if needed is None or free >= needed:
        return None
    return report(
        RULE,
        f"The weights alone take {needed:.1f} GiB, but {free:.1f} GiB are free at {storage.existing}, where the {name} "
        "lies: the first save fails.",
        place,
        subject=storage.existing,
        severity=_severity(case, storage),
        evidence=("without the optimizer's state, which a checkpoint of a full training holds as well",),
        fix=Fix("name a directory on a larger disk"),
    )


def _weights_gib(case: Case, launch: Launch, given: TrainingArguments, name: str) -> float | None:
    """What the weights that are surely saved take at least, in GiB; None when it is not sure that all are saved."""
    if launch.target.framework != "llamafactory":
        return None
    if name == "export_dir":
        if launch.target.subcommand != "export" or given.get("export_quantization_bit") is not None:
            return None
    elif name != "output_dir" or not _saves_all_weights(launch, given):
        return None
    model = next(iter(models(launch)), None)
    if model is None:
        return None
    folder = case.workspace.model_folder(model.text, launch.command.directory)
    if not isinstance(folder, Unknown) and not isinstance(folder.parameters, Unknown):
        return folder.parameters * 2 / (1 << 30)
    known = case.facts.models
    info = None if isinstance(known, Unknown) else known.get(model.text)
    return None if info is None else _size_gib(info)


def _saves_all_weights(launch: Launch, given: TrainingArguments) -> bool:
    if not is_training(launch) or given.text("finetuning_type") != "full":
        return False
    return given.truth("do_train") is True and given.text("save_strategy", "steps") != "no"


def _size_gib(info: ModelInfo) -> float | None:
    """Two bytes for each parameter: what half precision takes, in which weights are saved at the least."""
    if isinstance(info.parameters, Unknown):
        return None
    return info.parameters * min(2, _BYTES.get(str(info.dtype), 2)) / (1 << 30)


def _in_use(case: Case, launch: Launch, given: TrainingArguments, path: str, place: Location) -> Finding | None:
    """An output directory that is refused, or from which the training is resumed, because of what lies there."""
    names = case.workspace.names(path, launch.command.directory)
    if isinstance(names, Unknown) or not names or given.truth("do_train") is not True:
        return None
    if given.truth("overwrite_output_dir") is not False or given.get("resume_from_checkpoint") is not None:
        return None
    newest = max((name for name in names if _CHECKPOINT.fullmatch(name)), key=_number, default=None)
    if is_training(launch):
        finding = _refused_by_llamafactory(case, given, path, place, names, newest)
    elif newest is None and _refuses_itself(launch):
        finding = _refused(path, place, names[0], launch.target.value or "the script")
    else:
        finding = None
    return finding if finding is None or not may_come_from_before(case, launch, path) else None


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _refuses_itself(launch: Launch) -> bool:
    """Whether the script is one of transformers' examples, or like them."""
    program = launch.target.program
    if isinstance(program, Unknown):
        return False
    return _REFUSES in program.source.text and "get_last_checkpoint" in program.source.text


def _refused_by_llamafactory(
    case: Case, given: TrainingArguments, path: str, place: Location, names: tuple[str, ...], newest: str | None
) -> Finding | None:
    if given.text("stage", "sft") in {"rm", "ppo"} and given.text("finetuning_type", "lora") in {"full", "freeze"}:
        return None
    if given.get("stage") is not None and given.text("stage") is None:
        return None
    if newest is not None:
        return report(
            RULE,
            f"{path} holds {newest}: LLaMA-Factory resumes from it instead of starting anew, without being asked.",
            place,
            subject=path,
            severity=Severity.ADVICE,
            fix=Fix("name another output_dir, or set overwrite_output_dir: true, to start anew"),
        )
    if version_at_least(case.knowledge.release("llamafactory").version, 0, 7) is False:
        return None
    found = next((name for name in names if name in _REFUSED), None)
    return None if found is None else _refused(path, place, found, "LLaMA-Factory")


def _refused(path: str, place: Location, found: str, who: str) -> Finding:
    return report(
        RULE,
        f"{path} already holds {found} and no checkpoint to resume from: {who} refuses it with 'Output directory "
        "already exists and is not empty'.",
        place,
        subject=path,
        fix=Fix("name another output_dir, or set overwrite_output_dir: true"),
    )


def _cache(case: Case, launch: Launch) -> Iterator[Finding]:
    """A model that has to be downloaded into a cache which may not be written to."""
    cached, path = case.facts.hub_cache, case.facts.hub_cache_path
    if isinstance(cached, Unknown) or isinstance(path, Unknown) or is_offline(case, launch) is not False:
        return
    if any(variable.name in _CACHES and variable.scope != "inherited" for variable in launch.command.environment):
        return
    model = next(iter(models(launch)), None)
    if model is None or model.text in cached or not is_for_transformers(launch, model):
        return
    if is_local_path(model.text) or "/" not in model.text:
        return
    if case.workspace.kind(model.text, launch.command.directory) != "missing":
        return
    storage = case.workspace.storage(path)
    if isinstance(storage, Unknown) or storage.writable is not False:
        return
    yield report(
        RULE,
        f"{model.text} is not in the hub's cache yet, and {storage.existing} may not be written to: it cannot be "
        "downloaded.",
        model.location,
        subject=path,
        fix=Fix("point HF_HOME at a directory of your own"),
    )


_CACHES = frozenset(
    {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME", "HOME"}
)
