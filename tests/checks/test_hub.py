"""Files, caches and addresses: what the rules about the hub say where the examples alone do not show it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from judging import found, mended
from mgpu_checks.hub import (
    endpoint_malformed,
    model_files_incomplete,
    offline_but_remote,
    offline_flags_missing,
    offline_flags_partial,
    output_not_writable,
)
from mgpu_doctor.authoring import Check, Finding
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry

TRAIN = "torchrun --nproc_per_node 2 train.py --model_name_or_path "
SCRIPT = {"train.py": "import torch\n"}
HEADER = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
WHOLE = f"{chr(len(HEADER))}{chr(0) * 7}{HEADER}{chr(0) * 4}"
MODEL = {"m/config.json": '{"model_type": "llama"}', "m/tokenizer.json": "{}", "m/model.safetensors": WHOLE}
SFT = "model_name_or_path: ./m\nstage: sft\ndo_train: true\noutput_dir: out\n"
NO_NETWORK = {"network": {"huggingface.co": False}}


def severities(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.severity.value for finding in findings]


def here(module: object, command: str, directory: Path) -> tuple[Finding, ...]:
    """The findings of a rule about this machine itself."""
    check = Check(module.RULE, module.find)  # type: ignore[attr-defined]
    report = diagnose(Request(command=command, directory=str(directory)), Registry((check,), ()))
    (outcome,) = report.outcomes
    assert outcome.kind.value != "crashed", outcome.reason
    return report.findings


def without(*names: str, **more: str) -> dict[str, str]:
    return {name: text for name, text in {**MODEL, **more}.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (without("m/config.json"), "no config.json"),
        (without("m/model.safetensors"), "neither model.safetensors nor pytorch_model.bin"),
        (without("m/tokenizer.json"), "no file of a tokenizer"),
        (without(**{"m/config.json": "{"}), "m/config.json is no valid JSON"),
        (without(**{"m/tokenizer.json": ""}), "m/tokenizer.json is empty"),
        ({"m/checkpoint-5/config.json": "{}", "m/checkpoint-10/config.json": "{}"}, "no config.json"),
    ],
)
def test_llamafactory_loads_all_of_it_from_one_folder(files: dict[str, str], words: str) -> None:
    (finding,) = found(model_files_incomplete, "llamafactory-cli train sft.yaml", files={"sft.yaml": SFT, **files})
    assert words in finding.message
    assert finding.location is not None
    assert finding.location.source.name.endswith("sft.yaml")


def test_the_newest_checkpoint_inside_is_offered() -> None:
    files = {"sft.yaml": SFT, "m/checkpoint-5/config.json": "{}", "m/checkpoint-10/config.json": "{}"}
    (finding,) = found(model_files_incomplete, "llamafactory-cli train sft.yaml", files=files)
    assert finding.fix is not None
    assert finding.fix.title == "name ./m/checkpoint-10"


def test_deepspeed_checkpoints_are_to_be_gathered() -> None:
    files = {"sft.yaml": SFT, **without("m/model.safetensors"), "m/global_step100/x.pt": "", "m/zero_to_fp32.py": ""}
    (finding,) = found(model_files_incomplete, "llamafactory-cli train sft.yaml", files=files)
    assert "DeepSpeed's own form" in finding.message


@pytest.mark.parametrize(
    "names", [["m/model_index.json"], ["m/params.json", "m/consolidated.safetensors"], ["m/q4.gguf"]]
)
def test_folders_that_are_loaded_otherwise_are_left_alone(names: list[str]) -> None:
    files = {"sft.yaml": SFT, **dict.fromkeys(names, "x")}
    assert not found(model_files_incomplete, "llamafactory-cli train sft.yaml", files=files)


def test_a_program_that_is_not_known_may_want_no_weights() -> None:
    assert not found(model_files_incomplete, TRAIN + "./m", files={**SCRIPT, "m/config.json": "{}"})
    assert not found(model_files_incomplete, TRAIN + "./m", files={**SCRIPT, "m/best.ckpt": "x"})


def test_a_folder_that_an_earlier_command_writes_is_left_alone() -> None:
    files = {
        "sft.yaml": SFT.replace("out", "m2"),
        "next.yaml": SFT.replace("./m", "m2"),
        **MODEL,
        "m2/config.json": '{"model_type": "llama"}',
    }
    command = "llamafactory-cli train sft.yaml\nllamafactory-cli train next.yaml"
    assert not found(model_files_incomplete, command, files=files)
    (finding,) = found(model_files_incomplete, "llamafactory-cli train next.yaml", files=files)
    assert "neither" in finding.message


def test_a_vocabulary_beside_a_sound_tokenizer_is_not_needed() -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    assert not found(model_files_incomplete, TRAIN + "m", files={**SCRIPT, **MODEL, "m/tokenizer.model": pointer})
    files = {**SCRIPT, **without("m/tokenizer.json"), "m/tokenizer.model": pointer}
    (finding,) = found(model_files_incomplete, TRAIN + "m", files=files)
    assert finding.fix is not None
    assert finding.fix.commands == ("git lfs install", "git -C m lfs pull")


def test_a_path_that_leads_nowhere_is_sure_on_this_machine_alone(tmp_path: Path) -> None:
    assert severities(found(model_files_incomplete, TRAIN + "./gone", files=SCRIPT)) == ["advice"]
    assert not found(model_files_incomplete, TRAIN + "/models/gone", files=SCRIPT)
    assert not found(model_files_incomplete, TRAIN + "org/gone", files=SCRIPT)
    assert not here(model_files_incomplete, "torchrun train.py --model ./new", tmp_path)
    (tmp_path / "train.py").write_text("import torch\n")
    assert severities(here(model_files_incomplete, TRAIN + "./gone", tmp_path)) == ["error"]
    assert severities(here(model_files_incomplete, TRAIN + str(tmp_path / "gone"), tmp_path)) == ["error"]


def test_adapters_of_other_programs_may_have_another_form() -> None:
    files = {**SCRIPT, **MODEL, "lora/pytorch_lora_weights.safetensors": WHOLE}
    assert not found(model_files_incomplete, TRAIN + "m --lora_path ./lora", files=files)
    command = "llamafactory-cli chat --model_name_or_path m --template llama3 --adapter_name_or_path "
    (finding,) = found(model_files_incomplete, command + "./lora", files=files)
    assert "no adapter_config.json" in finding.message
    two = {**files, "a/adapter_config.json": "{}", "a/adapter_model.bin": "x", "b/adapter_config.json": "{}"}
    (finding,) = found(model_files_incomplete, command + "./a,./b", files=two)
    assert finding.subject == "./b"
    assert not found(model_files_incomplete, command + "./lora --adapter_folder sub", files=files)


def test_lint_looks_into_no_folder() -> None:
    files = {"run.sh": TRAIN + "./m\n", **without(**{"m/model.safetensors": "x"})}
    assert not found(model_files_incomplete, None, files=files, lint=("run.sh",))


def test_a_model_in_a_snapshot_of_links_is_whole(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, (name, text) in enumerate(MODEL.items()):
        (blobs / str(number)).write_bytes(text.encode())
        (snapshot / name.partition("/")[2]).symlink_to(f"../../blobs/{number}")
    (tmp_path / "train.py").write_text("import torch\n")
    assert not here(model_files_incomplete, TRAIN + str(snapshot), tmp_path)
    (blobs / "2").unlink()
    (finding,) = here(model_files_incomplete, TRAIN + str(snapshot), tmp_path)
    assert "model.safetensors is a link that leads nowhere" in finding.message


def test_offline_the_switch_that_counts_is_named() -> None:
    (finding,) = found(
        offline_but_remote, "TRANSFORMERS_OFFLINE=1 " + TRAIN + "org/m", files=SCRIPT, facts={"hub_cache": ["x/m"]}
    )
    assert finding.message.startswith("TRANSFORMERS_OFFLINE=1 keeps the job off the hub, and org/m")
    assert any("x/m" in piece.text for piece in finding.evidence)


def test_online_is_offered_only_where_there_is_a_network() -> None:
    command = "HF_HUB_OFFLINE=1 " + TRAIN + "org/m"
    (finding,) = found(offline_but_remote, command, files=SCRIPT, facts={"hub_cache": []})
    (online,) = finding.alternatives
    assert online.edits[0].replacement == "HF_HUB_OFFLINE=0"
    (finding,) = found(offline_but_remote, command, files=SCRIPT, facts={"hub_cache": [], **NO_NETWORK})
    assert not finding.alternatives


@pytest.mark.parametrize(
    "command",
    [
        "HF_HUB_OFFLINE=1 " + TRAIN + "gpt2",
        "HF_HUB_OFFLINE=1 " + TRAIN + "$MODEL",
        "HF_HUB_OFFLINE=1 " + TRAIN + "org/m --cache_dir /data/cache",
        "HF_HUB_OFFLINE=$OFF " + TRAIN + "org/m",
        "HF_HUB_OFFLINE=1 swift sft --model org/m",
        "USE_MODELSCOPE_HUB=$X llamafactory-cli chat --model_name_or_path org/m --template llama3",
        "env -i HF_HUB_OFFLINE=1 " + TRAIN + "org/m",
    ],
)
def test_offline_nothing_is_guessed(command: str) -> None:
    assert not found(offline_but_remote, command, files=SCRIPT, facts={"hub_cache": []})


def test_data_sets_are_a_warning_because_they_may_be_prepared_elsewhere() -> None:
    files = {"train.py": "import datasets\n"}
    command = "HF_HUB_OFFLINE=1 python train.py --dataset_name org/pairs"
    assert severities(found(offline_but_remote, command, files=files, facts={"hub_cache": []})) == ["warning"]
    assert not found(offline_but_remote, command, files=files, facts={"hub_cache": ["datasets/org/pairs"]})
    assert not found(offline_but_remote, command, files=files, facts={"hub_cache": ["org/pairs"]})
    assert not found(offline_but_remote, command, files={**files, "org/pairs/a.json": "[]"}, facts={"hub_cache": []})
    assert not found(offline_but_remote, command, files=SCRIPT, facts={"hub_cache": []})


def test_a_model_that_is_there_needs_no_network_but_the_switch() -> None:
    command = TRAIN + "./m"
    assert not found(offline_but_remote, command, files={**SCRIPT, **MODEL}, facts={"hub_cache": [], **NO_NETWORK})
    assert found(offline_flags_missing, command, files={**SCRIPT, **MODEL}, facts=NO_NETWORK)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("hf-mirror.com", "https://hf-mirror.com"),
        ("http//hf-mirror.com", "http://hf-mirror.com"),
        ("https:/hf-mirror.com", "https://hf-mirror.com"),
        ("https:hf-mirror.com", "https://hf-mirror.com"),
        ("http:///hf-mirror.com", None),
        ("ftp://hf-mirror.com", None),
        ("127.0.0.1:8080/hf", "https://127.0.0.1:8080/hf"),
        ("https://hf-mirror.com\u201d", "https://hf-mirror.com"),
    ],
)
def test_an_endpoint_that_is_no_address_is_mended_where_it_can_be(value: str, meant: str | None) -> None:
    (finding,) = found(endpoint_malformed, f"HF_ENDPOINT={value} {TRAIN}org/m", files=SCRIPT)
    assert finding.severity.value == "error"
    assert finding.fix is not None
    if meant is None:
        assert not finding.fix.edits
    else:
        assert mended(finding) == f"HF_ENDPOINT={meant} {TRAIN}org/m"


@pytest.mark.parametrize(
    "value",
    ["HTTPS://hf-mirror.com", "http://[::1]:8080", "https://user:pass@mirror.lan/hf/", "http://mirror_1:80/a?b=c"],
)
def test_odd_but_usable_endpoints_are_left_alone(value: str) -> None:
    assert not found(endpoint_malformed, f"HF_ENDPOINT='{value}' {TRAIN}org/m", files=SCRIPT)


@pytest.mark.parametrize(
    ("hub", "value", "is_named"),
    [
        ("0.36.2", "https://m.lan ", True),
        ("1.33.0", "https://m.lan ", False),
        ("0.36.2", " https://m.lan", False),
        ("1.33.0", " https://m.lan", True),
        ("0.24.7", "", False),
        ("0.36.2", "", True),
    ],
)
def test_blanks_and_nothing_depend_on_the_release(hub: str, value: str, is_named: bool) -> None:
    facts = {"packages": {"huggingface-hub": hub}}
    assert bool(found(endpoint_malformed, f"HF_ENDPOINT='{value}' {TRAIN}org/m", files=SCRIPT, facts=facts)) is is_named


@pytest.mark.parametrize(
    ("name", "hub", "severity"),
    [
        ("HTTPS_PROXY", "0.36.2", ["error"]),
        ("all_proxy", "1.33.0", ["error"]),
        ("HTTP_PROXY", "0.36.2", []),
        ("HTTP_PROXY", "1.33.0", ["error"]),
    ],
)
def test_which_proxy_matters_depends_on_the_library(name: str, hub: str, severity: list[str]) -> None:
    facts = {"packages": {"huggingface-hub": hub}, "env": {name: '"http://10.0.0.1:3128"'}}
    assert severities(found(endpoint_malformed, TRAIN + "org/m", files=SCRIPT, facts=facts)) == severity


def test_a_proxy_is_no_error_for_a_model_on_disk_and_none_where_no_proxy_is_used() -> None:
    facts = {"env": {"HTTPS_PROXY": "socks://10.0.0.1:1080"}}
    assert severities(found(endpoint_malformed, TRAIN + "./m", files={**SCRIPT, **MODEL}, facts=facts)) == ["warning"]
    assert not found(endpoint_malformed, "NO_PROXY='*' " + TRAIN + "org/m", files=SCRIPT, facts=facts)


def test_passwords_in_addresses_are_not_repeated() -> None:
    (finding,) = found(endpoint_malformed, f"HTTPS_PROXY=socks://me:secret@p.lan:1 {TRAIN}org/m", files=SCRIPT)
    assert finding.fix is not None
    assert "secret" not in finding.message + finding.fix.title + "".join(finding.fix.commands)


LF = "llamafactory-cli train sft.yaml"


@pytest.mark.parametrize(
    ("more", "files", "severity"),
    [
        ("", {"out/adapter_model.safetensors": ""}, ["error"]),
        ("", {"out/trainer_log.jsonl": ""}, []),
        ("", {"out/checkpoint-3/x": "", "out/adapter_model.safetensors": ""}, ["advice"]),
        ("", {"out/checkpoint-last/x": "", "out/model.safetensors": ""}, ["error"]),
        ("resume_from_checkpoint: out/checkpoint-3\n", {"out/checkpoint-3/x": ""}, []),
        ("overwrite_output_dir: true\n", {"out/adapter_model.safetensors": ""}, []),
        ("do_train: false\n", {"out/adapter_model.safetensors": ""}, []),
    ],
)
def test_llamafactory_refuses_what_its_source_refuses(more: str, files: dict[str, str], severity: list[str]) -> None:
    text = SFT.replace("do_train: true\n", "") + more if "do_train" in more else SFT + more
    assert severities(found(output_not_writable, LF, files={"sft.yaml": text, **files})) == severity


def test_an_export_needs_room_for_all_weights() -> None:
    facts = {
        "models": {"/models/base": {"parameters": 8e9, "dtype": "bfloat16"}},
        "paths": {"/out": {"mode": "drwxrwxrwx", "free_gib": 10}},
    }
    command = "llamafactory-cli export --model_name_or_path /models/base --template llama3 --export_dir /out"
    (finding,) = found(output_not_writable, command, facts=facts)
    assert "14.9 GiB" in finding.message
    assert "10.0 GiB" in finding.message
    assert not found(output_not_writable, command + " --export_quantization_bit 4", facts=facts)


def test_the_torchrun_logs_are_written_too() -> None:
    command = "torchrun --nproc_per_node 2 --log-dir /logs train.py"
    closed = {"paths": {"/logs": {"mode": "dr-xr-xr-x"}}}
    assert severities(found(output_not_writable, command, files=SCRIPT, facts=closed)) == ["error"]
    is_open = {"paths": {"/logs": {"kind": "directory", "writable": True}}}
    assert not found(output_not_writable, command, files=SCRIPT, facts=is_open)


def test_this_machine_is_asked_itself(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import torch\n")
    (tmp_path / "file").write_text("x")
    command = "torchrun --nproc_per_node 2 train.py --output_dir "
    assert not here(output_not_writable, command + "out/new/run", tmp_path)
    (finding,) = here(output_not_writable, command + "file", tmp_path)
    assert "is a file" in finding.message
    (finding,) = here(output_not_writable, command + "file/out", tmp_path)
    assert "is a file" in finding.message
    if not os.access("/proc/self", os.W_OK):
        assert here(output_not_writable, command + "/proc/self/out", tmp_path)


def test_a_cache_that_may_not_be_written_matters_only_for_what_is_not_in_it() -> None:
    facts = {
        "hub_cache": ["org/there"],
        "hub_cache_path": "/shared/hub",
        "paths": {"/shared/hub": {"mode": "dr-xr-xr-x"}},
    }
    (finding,) = found(output_not_writable, TRAIN + "org/new", files=SCRIPT, facts=facts)
    assert "cannot be downloaded" in finding.message
    assert not found(output_not_writable, TRAIN + "org/there", files=SCRIPT, facts=facts)
    assert not found(output_not_writable, "HF_HOME=/mine " + TRAIN + "org/new", files=SCRIPT, facts=facts)


def test_an_inherited_name_that_nothing_reads() -> None:
    (finding,) = found(
        offline_flags_partial,
        "python train.py",
        files={"train.py": "from transformers import AutoModel\n\nAutoModel.from_pretrained('org/model')\n"},
        facts={"env": {"HF_OFFLINE": "1"}},
    )
    assert finding.subject == "HF_OFFLINE in the environment"
    assert finding.fix is not None
    assert finding.fix.commands == ("export HF_HUB_OFFLINE=1",)
