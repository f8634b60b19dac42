"""A model's folder lacks a file that is loaded from it, or holds one that is cut off or only a git-lfs pointer."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import (
    Given,
    adapters,
    is_for_transformers,
    is_local_path,
    loads_with_transformers,
    may_come_from_before,
    models,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    FileFault,
    Finding,
    Fix,
    Launch,
    ModelFolder,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    pattern,
    report,
)

_TRAIN = "torchrun --nproc_per_node 2 train.py --model_name_or_path ./models/base"
_SCRIPT = {"train.py": "import torch\n"}
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n"
_HEADER = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_WHOLE = f"{chr(len(_HEADER))}{chr(0) * 7}{_HEADER}{chr(0) * 4}"
_CONFIG = {"models/base/config.json": '{"model_type": "llama"}\n', "models/base/tokenizer.json": '{"version": "1.0"}\n'}
_INDEX = (
    '{"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", '
    '"b": "model-00002-of-00002.safetensors"}}\n'
)
_SFT = {"sft.yaml": "model_name_or_path: ./models/base\nstage: sft\ndo_train: true\noutput_dir: out\n"}

RULE = Rule(
    code="MGD404",
    slug="model-files-incomplete",
    title="The model's files are not complete",
    severity=Severity.ERROR,
    summary="a shard is missing, a file is cut off or a git-lfs pointer, or there is no config or tokenizer",
    why=(
        "A folder looks complete when a download was interrupted, when `git clone` ran without git-lfs (each big file "
        "is then a text of 130 bytes), or when the disk was full. Every rank finds out on its own, after the launcher "
        "has started all of them, with messages that do not name the cause: 'Error while deserializing header: header "
        "too large', 'incomplete metadata, file not fully covered', 'Error no file named model.safetensors …'."
    ),
    bad=(
        Example(
            "git-lfs pointers in place of the weights",
            _TRAIN,
            files={**_SCRIPT, **_CONFIG, "models/base/model.safetensors": _POINTER},
        ),
        Example(
            "a shard that the index names is missing",
            _TRAIN,
            files={
                **_SCRIPT,
                **_CONFIG,
                "models/base/model.safetensors.index.json": _INDEX,
                "models/base/model-00001-of-00002.safetensors": _WHOLE,
            },
        ),
        Example(
            "the download was cut off",
            _TRAIN,
            files={**_SCRIPT, **_CONFIG, "models/base/model.safetensors": _WHOLE[:-2]},
        ),
        Example(
            "no weights in LLaMA-Factory's model folder",
            "llamafactory-cli train sft.yaml",
            files={**_SFT, **_CONFIG},
        ),
        Example(
            "an adapter without its weights",
            "llamafactory-cli chat --model_name_or_path ./models/base --adapter_name_or_path ./lora --template llama3",
            files={
                **_CONFIG,
                "models/base/model.safetensors": _WHOLE,
                "lora/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "m"}\n',
            },
        ),
    ),
    good=(
        Example(
            "a small model that is whole",
            _TRAIN,
            files={**_SCRIPT, **_CONFIG, "models/base/model.safetensors": _WHOLE},
        ),
        Example(
            "all shards are there",
            _TRAIN,
            files={
                **_SCRIPT,
                **_CONFIG,
                "models/base/model.safetensors.index.json": _INDEX,
                "models/base/model-00001-of-00002.safetensors": _WHOLE,
                "models/base/model-00002-of-00002.safetensors": _WHOLE,
            },
        ),
        Example(
            "a pointer that is not loaded: the safetensors file is taken",
            _TRAIN,
            files={
                **_SCRIPT,
                **_CONFIG,
                "models/base/model.safetensors": _WHOLE,
                "models/base/pytorch_model.bin": _POINTER,
            },
        ),
        Example(
            "trained from scratch: only the configuration is read",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": _SFT["sft.yaml"] + "train_from_scratch: true\n", **_CONFIG},
        ),
        Example(
            "it is fetched by the command above",
            "hf download org/base --local-dir models/base\n" + _TRAIN,
            files={**_SCRIPT, **_CONFIG, "models/base/model.safetensors": _POINTER},
        ),
        Example("a folder of another machine", "torchrun train.py --model_name_or_path /models/base", files=_SCRIPT),
    ),
    sources=(
        Reference(
            "transformers 4.40.0, 4.52.4, 5.6.0, 5.23.0, modeling_utils.py",
            "model.safetensors, else the shards of its index, else pytorch_model.bin, else those of its index; "
            "without any: 'Error no file named …'",
        ),
        Reference(
            "safetensors 0.8.0 with transformers 4.52.4 and 5.6.0",
            "a cut file: 'incomplete metadata, file not fully covered'; a pointer: 'header too large'; an empty one: "
            "'header too small'; a missing shard: FileNotFoundError",
            ran=True,
        ),
        Reference(
            "transformers 4.52.4 and 5.6.0, AutoConfig",
            "a folder without config.json: 'Unrecognized model in …. Should have a `model_type` key in its …'",
            ran=True,
        ),
        Reference(
            "llamafactory 0.9.3, 0.9.5, model/loader.py",
            "tokenizer, configuration and weights come from model_name_or_path; train_from_scratch reads no weights",
        ),
        Reference(
            "peft 0.15.2, utils/save_and_load.py load_peft_weights()",
            "adapter_model.safetensors, else adapter_model.bin; else the path is taken for a hub id",
        ),
    ),
    fix="Fetch the files again",
    signatures=(
        Signature(
            r"Error while deserializing header: (?:header too (?:large|small)|invalid header length|incomplete metadata"
            r"|HeaderToo(?:Large|Small)|InvalidHeaderLength|MetadataIncompleteBuffer|InvalidHeaderDeserialization"
            r"|invalid JSON in header)",
            "safetensors 0.6.0 to 0.8.0 (sentences), 0.3.0 to 0.5.3 (names), tensor.rs and bindings/python lib.rs",
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, "
            "file not fully covered",
        ),
        Signature(
            r"Error no file named .+ found in directory",
            "transformers 4.52.4 and 5.6.0, modeling_utils.py",
            "OSError: Error no file named pytorch_model.bin, model.safetensors, tf_model.h5, model.ckpt.index or "
            "flax_model.msgpack found in directory models/base.",
        ),
        Signature(
            r"You seem to have cloned a repository without having git-lfs installed",
            "transformers 4.40.0 to 4.57.6, modeling_utils.py load_state_dict()",
            "OSError: You seem to have cloned a repository without having git-lfs installed. Please install git-lfs "
            "and run `git lfs install` followed by `git lfs pull` in the folder you cloned.",
        ),
        Signature(
            r"Unsupported operand 118\b",
            "transformers 5.6.0 with torch 2.13.0: 118 is the v of 'version https://git-lfs…' in pytorch_model.bin",
            "Unsupported operand 118",
        ),
        Signature(
            r"No such file or directory: .*-\d{5}-of-\d{5}\.(?:safetensors|bin)",
            "transformers 4.52.4 and 5.6.0, a shard that is missing",
            "FileNotFoundError: No such file or directory: models/base/model-00002-of-00004.safetensors",
        ),
        Signature(
            r"Unrecognized model in .+ Should have a `model_type` key in its config\.json",
            "transformers 4.52.4 and 5.6.0, models/auto/configuration_auto.py",
            "ValueError: Unrecognized model in models/base. Should have a `model_type` key in its config.json.",
        ),
        Signature(
            r"PytorchStreamReader failed reading zip archive",
            "torch 2.13.0, torch.load() of an archive that is cut off",
            "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        ),
        Signature(
            r"Can't find weights for .+ in .+ or in the Hugging Face Hub",
            "peft 0.15.2, utils/save_and_load.py load_peft_weights()",
            "ValueError: Can't find weights for org/lora in org/lora or in the Hugging Face Hub. Please check that the "
            "file adapter_model.bin or adapter_model.safetensors is present at org/lora.",
        ),
        Signature(
            r"does not appear to have (?:a file|files) named|[Cc]an't load (?:tokenizer|image processor|feature "
            r"extractor|processor|the model|the configuration) (?:for|of) '(?=[./~])",
            "transformers 4.28.1 to 5.23.0, utils/hub.py cached_file() and tokenization_utils_base.py",
            "OSError: /data/out/checkpoint-100 does not appear to have a file named config.json. Checkout "
            "'https://huggingface.co//data/out/checkpoint-100/tree/None' for available files.",
        ),
        Signature(
            r"(?:OSError: |^)[./~]\S* is not a local folder and is not a valid model identifier|Repo id must .*: "
            r"'[./~]",
            "transformers 4.28.1 to 5.23.0, utils/hub.py; huggingface_hub 0.20.3, utils/_validators.py: a folder "
            "that is not there",
            "OSError: /data/models/qwen is not a local folder and is not a valid model identifier listed on "
            "'https://huggingface.co/models'",
            weak=True,
        ),
        Signature(
            r"copying a param with shape torch\.Size\(\[0\]\) from checkpoint",
            "torch 2.13.0, nn/modules/module.py load_state_dict(): a checkpoint saved under ZeRO-3 without gathering",
            "size mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([0]) from "
            "checkpoint, the shape in current model is torch.Size([32002, 4096]).",
        ),
        Signature(
            r"UnpicklingError: invalid load key, '[v<]'",
            "torch 2.13.0, torch.load() of a git-lfs pointer ('version …') or of a page ('<html>')",
            "_pickle.UnpicklingError: invalid load key, 'v'.",
        ),
    ),
)

_MOST_SHOWN = 5
_TOKENIZER_FILE = pattern(r"(?i)token|vocab|merges|spiece|bpe|tekken|tiktoken|spm|\.model$")
_CHECKPOINT = pattern(r"checkpoint-\d+")
_OTHER_FORMS = ("model_index.json", "params.json", "open_clip_config.json", "model_config.yaml", "modules.json")
"""Signs of a folder that is loaded otherwise: diffusers, Mistral's own form, OpenCLIP, NeMo, sentence-transformers."""

_VOCABULARIES = frozenset({"tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
                           "sentencepiece.bpe.model"})  # fmt: skip
_BY_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer_config.json"})
_UNLOADED = frozenset({"generation_config.json", "special_tokens_map.json", "preprocessor_config.json"})
"""Small files that are not read by every job; a pointer in their place is named beside others, not alone."""


def find(case: Case) -> Iterator[Finding]:
    """One finding for each folder from which a model or an adapter could not be loaded."""
    unknown: Unknown | None = None
    for launch in case.launches:
        for given, is_adapter in (*((g, False) for g in models(launch)), *((g, True) for g in adapters(launch))):
            kind = case.workspace.kind(given.text, launch.command.directory)
            if kind == "missing" and is_local_path(given.text) and is_for_transformers(launch, given):
                yield from _absent(case, launch, given)
            if kind != "directory":
                continue
            folder = case.workspace.model_folder(given.text, launch.command.directory)
            if isinstance(folder, Unknown):
                unknown = folder
                continue
            finding = _judge(launch, given, folder, is_adapter)
            if finding is not None and not may_come_from_before(case, launch, given.text):
                yield finding
    if unknown is not None:
        case.require(unknown)


def _absent(case: Case, launch: Launch, given: Given) -> Iterator[Finding]:
    """A path that leads nowhere. Of another machine only its own working directory is at hand: then it is advice."""
    if may_come_from_before(case, launch, given.text):
        return
    sure = case.facts.origin == "this machine" or given.text.startswith("/")
    yield report(
        RULE,
        f"{given.text} does not exist, so there is no model to load: the path is then taken for a hub id.",
        given.location,
        subject=given.text,
        severity=Severity.ERROR if sure else Severity.ADVICE,
        fix=Fix("name the folder that holds config.json"),
    )


def _judge(launch: Launch, given: Given, folder: ModelFolder, is_adapter: bool) -> Finding | None:
    faults = _that_matter(folder)
    if faults and not _is_from_scratch(launch, faults):
        return _broken(given, folder, faults)
    missing = _missing(launch, folder, is_adapter)
    if missing is None:
        return None
    message, title = missing
    return report(RULE, message, given.location, subject=folder.path, fix=Fix(title))


def _that_matter(folder: ModelFolder) -> tuple[FileFault, ...]:
    """The faults that keep the folder from being loaded, the rest only beside them."""
    found = []
    for fault in folder.faults:
        if fault.name in _VOCABULARIES and folder.has("tokenizer.json"):
            continue
        if fault.name in _VOCABULARIES and fault.kind == "empty":
            continue
        found.append(fault)
    return tuple(found) if any(fault.name not in _UNLOADED for fault in found) else ()


def _is_from_scratch(launch: Launch, faults: tuple[FileFault, ...]) -> bool:
    """Whether nothing but weights is at fault, and none are loaded."""
    small = _VOCABULARIES | _BY_TOKENIZERS | _UNLOADED | {"config.json", "adapter_config.json"}
    return _trains_from_scratch(launch) and not any(fault.name in small for fault in faults)


def _trains_from_scratch(launch: Launch) -> bool:
    argument = launch.target.argument("train_from_scratch")
    if argument is not None:
        return not argument.values or str(argument.value).lower() not in {"false", "0", "no"}
    return any(config.get("train_from_scratch") is True for config in launch.target.configs)


def _broken(given: Given, folder: ModelFolder, faults: tuple[FileFault, ...]) -> Finding:
    first = faults[0]
    more = f", and {len(faults) - 1} more of its files cannot be loaded either" if len(faults) > 1 else ""
    shown = [f"{fault.name} {fault.detail}" for fault in faults[:_MOST_SHOWN]]
    if len(faults) > _MOST_SHOWN:
        shown.append(f"… {len(faults) - _MOST_SHOWN} more")
    count = f" ({len(folder.weights)} weight files are to be loaded)" if len(folder.weights) > 1 else ""
    return report(
        RULE,
        f"{folder.path.rstrip('/')}/{first.name} {first.detail}{more}{count}: the job stops when it loads the model.",
        given.location,
        subject=folder.path,
        evidence=shown if len(faults) > 1 else (),
        fix=_fetch(folder, faults),
    )


def _fetch(folder: ModelFolder, faults: tuple[FileFault, ...]) -> Fix:
    kinds = {fault.kind for fault in faults}
    if "pointer" in kinds:
        from shlex import quote

        return Fix("let git-lfs fetch the files", commands=("git lfs install", f"git -C {quote(folder.path)} lfs pull"))
    if kinds == {"unreadable"}:
        return Fix("give the job's user the right to read them")
    return Fix("download them again (hf download MODEL --local-dir FOLDER completes a folder)")


def _missing(launch: Launch, folder: ModelFolder, is_adapter: bool) -> tuple[str, str] | None:
    """What is not there although the framework loads it, and what helps; None when all is there or nobody knows."""
    if is_adapter or (folder.adapter is not None and folder.config is None):
        return _missing_of_adapter(folder) if _takes_adapters(launch) else None
    if not loads_with_transformers(launch) or folder.has(*_OTHER_FORMS) or _has_gguf(folder):
        return None
    if not folder.has("config.json"):
        return _without_config(folder)
    if not folder.weights and folder.index is None and not _trains_from_scratch(launch):
        return _without_weights(folder)
    if not any(_TOKENIZER_FILE.search(name) for name in folder.names):
        message = f"{folder.path} holds no file of a tokenizer (tokenizer.json, tokenizer.model, vocab.json …), and "
        return message + "the tokenizer is loaded from there first.", "copy the tokenizer's files from the base model"
    return None


def _takes_adapters(launch: Launch) -> bool:
    """Whether an adapter is peft's, and lies in the very folder that is named: LLaMA-Factory's own way to do it."""
    if launch.target.argument("adapter_folder") is not None:
        return False
    return launch.target.framework == "llamafactory" and not any(c.has("adapter_folder") for c in launch.target.configs)


def _missing_of_adapter(folder: ModelFolder) -> tuple[str, str] | None:
    if not folder.has("adapter_config.json"):
        inside = _checkpoints(folder)
        hint = f"name {folder.path.rstrip('/')}/{inside}" if inside else "name the folder that holds the adapter"
        return f"{folder.path} is named as an adapter but holds no adapter_config.json.", hint
    if folder.weights or folder.has("adapter_model.safetensors", "adapter_model.bin"):
        return None
    message = f"{folder.path} holds adapter_config.json but neither adapter_model.safetensors nor adapter_model.bin: "
    return message + "the path is then taken for a hub id, and refused as one.", "copy the adapter's weights there"


def _without_config(folder: ModelFolder) -> tuple[str, str]:
    inside = _checkpoints(folder)
    hint = "name the folder that holds config.json"
    if inside:
        hint = f"name {folder.path.rstrip('/')}/{inside}"
    return f"{folder.path} holds no config.json ({len(folder.names)} files): no model can be told from it.", hint


def _without_weights(folder: ModelFolder) -> tuple[str, str] | None:
    message = f"{folder.path} holds neither model.safetensors nor pytorch_model.bin, nor the index of their shards"
    if any(name.startswith("global_step") for name in folder.names):
        hint = "gather the weights with the zero_to_fp32.py that lies there"
        return f"{message}; the weights are in DeepSpeed's own form.", hint
    if any(name.startswith("pytorch_model_fsdp") for name in folder.names):
        return f"{message}; the weights are in FSDP's own form.", "gather the weights with accelerate merge-weights"
    inside = _checkpoints(folder)
    if inside:
        return f"{message}.", f"name {folder.path.rstrip('/')}/{inside}"
    shards = [name for name in folder.names if _SHARD.search(name)]
    if shards:
        return f"{message}, only {len(shards)} shards such as {shards[0]}.", "fetch the index as well"
    if folder.has("tf_model.h5", "flax_model.msgpack", "model.ckpt.index"):
        return f"{message}: its weights are TensorFlow's or Flax's.", "fetch the weights for PyTorch"
    return f"{message}.", "fetch the weights"


_SHARD = pattern(r"-\d{5}-of-\d{5}\.(?:safetensors|bin)$")


def _has_gguf(folder: ModelFolder) -> bool:
    return any(name.endswith(".gguf") for name in folder.names)


def _checkpoints(folder: ModelFolder) -> str | None:
    """The newest checkpoint folder inside, None without any."""
    found = [name for name in folder.names if _CHECKPOINT.fullmatch(name)]
    return max(found, key=lambda name: int(name.rpartition("-")[2]), default=None)
