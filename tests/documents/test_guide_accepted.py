"""What the doctor writes in place of a faulty guide is taken by the real launchers and the real framework."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.mend import mended
from mgpu_doctor.testing import standard_facts
from model_folders import write_tensors
from oracle_environments import LAUNCHER_PARSERS, requires_oracle, run_parser

PREFIX = "CUDA_VISIBLE_DEVICES=4,5,6,7 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TRANSFORMERS_NO_FLASH_ATTENTION=1 \\\n"
PREDICT = """ -m llamafactory.launcher \\
  --stage sft \\
  --model_name_or_path models/base \\
  --template qwen \\
  --infer_backend huggingface \\
  --dataset questions \\
  --dataset_dir data \\
  --do_predict \\
  --predict_with_generate \\
  --output_dir out/predict \\
  --gpus 0,1,2,3 \\
  --cutoff_len 2048 \\
  --per_device_eval_batch_size 1"""
COMMANDS = {
    "accelerate predicts": PREFIX + "accelerate launch --num_processes 4 --main_process_port 29501" + PREDICT,
    "deepspeed predicts": PREFIX + "deepspeed --num_gpus 4" + PREDICT,
    "accelerate trains": """accelerate launch \\
    --config_file zero2.yaml \\  # switches DeepSpeed on
    -m llamafactory.launcher \\                                # starts the framework
    --stage sft --do_train --model_name_or_path models/base --template qwen --dataset questions --dataset_dir data \\
    --finetuning_type lora --output_dir out/sft""",
    "a package for a module": """accelerate launch --num_processes 4 -m llamafactory.train \\
    --stage sft --do_train --model_name_or_path models/base --template qwen --dataset questions --dataset_dir data \\
    --output_dir out/sft""",
}
CHAT = (
    "CUDA_VISIBLE_DEVICES=0,1 accelerate launch --num_processes 2 -m llamafactory.cli chat "
    "--model_name_or_path models/base --template qwen"
)

FILES = {
    "zero2.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_machines: 1\nnum_processes: 4\n"
    "machine_rank: 0\nmixed_precision: 'no'\ndeepspeed_config:\n  zero_stage: 2\n  gradient_accumulation_steps: 1\n",
    "data/dataset_info.json": '{"questions": {"file_name": "questions.json"}}',
    "data/questions.json": '[{"instruction": "a", "input": "", "output": "b"}]',
    "models/base/config.json": '{"model_type": "qwen2"}',
    "models/base/tokenizer.json": "{}",
    "models/base/tokenizer_config.json": "{}",
}

FRAMEWORK = """
import os, tempfile
os.environ["DISABLE_VERSION_CHECK"] = "1"
result = []
from llamafactory.hparams import parser
for kind, argv in payload:
    read = parser.get_train_args if kind == "train" else parser.get_infer_args
    os.chdir(tempfile.mkdtemp())
    try:
        read(argv)
        result.append("accepted")
    except SystemExit as stop:
        result.append(f"exit {stop.code}")
    except Exception as error:
        result.append(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text(text, encoding="utf-8")
    write_tensors(tmp_path / "work" / "models" / "base" / "model.safetensors", [("a", "F32", (1,))])
    (tmp_path / "facts.json").write_text(json.dumps(standard_facts()), encoding="utf-8")
    return tmp_path


def correct(command: str, place: Path) -> tuple[str, list[str]]:
    """The command after every fix that can be applied, again and again, and the codes first reported."""
    first: list[str] = []
    for _ in range(4):
        request = Request(command=command, facts=str(place / "facts.json"), directory=str(place / "work"))
        report = diagnose(request)
        assert not report.problems
        first = first or [finding.code for finding in report.findings]
        text = mended(report.findings, report.case.sources[0])
        if text is None:
            left = [finding.message for finding in report.findings if finding.severity.value != "advice"]
            assert not left
            return command, first
        command = text
    raise AssertionError(f"the fixes do not come to rest: {command}")


def split(command: str) -> tuple[list[str], list[str], list[str]]:
    """Environment, launcher with its options, and the framework's arguments."""
    words = shlex.split(command.replace("\\\n", " "))
    start = next(at for at, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word))
    module = words.index("llamafactory.launcher")
    return words[:start], words[start : module + 1], words[module + 1 :]


@requires_oracle("old")
@pytest.mark.oracle
@pytest.mark.parametrize("name", COMMANDS)
def test_the_corrected_command_is_accepted(name: str, place: Path) -> None:
    command, codes = correct(COMMANDS[name], place)
    assert codes
    environment, launcher, arguments = split(command)
    options = launcher[2:] if launcher[0] == "accelerate" else launcher[1:]
    (answer,) = run_parser("old", LAUNCHER_PARSERS, [[launcher[0], [*options, *arguments]]])
    assert "values" in answer, answer
    values = answer["values"]
    script = values.get("training_script") or values.get("user_script")
    assert script == "llamafactory.launcher"
    assert values["module"] is True
    assert run_parser("old", FRAMEWORK, [["train", arguments]]) == ["accepted"]
    if "CUDA_VISIBLE_DEVICES" in COMMANDS[name]:
        assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in environment or "localhost:4,5,6,7" in launcher


@requires_oracle("old")
@pytest.mark.oracle
def test_the_faulty_commands_are_refused_by_the_launcher_or_the_framework(place: Path) -> None:
    del place
    arguments = shlex.split(PREDICT.replace("\\\n", " "))[2:]
    assert run_parser("old", FRAMEWORK, [["train", arguments]]) != ["accepted"]
    (answer,) = run_parser("old", LAUNCHER_PARSERS, [["deepspeed", ["--num_gpus", "4", "-m", "llamafactory.launcher"]]])
    assert "error" in answer


@requires_oracle("old")
@pytest.mark.oracle
def test_a_chat_is_started_by_the_framework_alone(place: Path) -> None:
    command, codes = correct(CHAT, place)
    assert "MGD102" in codes
    words = shlex.split(command)
    assert words[:3] == ["CUDA_VISIBLE_DEVICES=0,1", "llamafactory-cli", "chat"]
    assert run_parser("old", FRAMEWORK, [["infer", words[3:]]]) == ["accepted"]
