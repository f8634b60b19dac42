"""The rules about a program's own arguments: what their examples do not show."""

from __future__ import annotations

import pytest

from judging import found, mended
from mgpu_checks.hub import dataset_not_registered, template_mismatch
from mgpu_checks.launch import (
    argument_order_broken,
    arguments_resplit,
    independent_copies,
    launcher_from_other_environment,
    launcher_not_installed,
    local_rank_argument,
    placeholder_left,
    target_option_unknown,
    target_options_refused,
)
from mgpu_doctor.authoring import Severity

RUN = "accelerate launch --num_processes 4 -m llamafactory.launcher --stage sft --template default --output_dir out"
PREDICT = f"{RUN} --model_name_or_path m --do_predict --predict_with_generate"
YAML = "model_name_or_path: m\nstage: sft\ndo_train: true\ntemplate: default\noutput_dir: out\n"
DATA = {"data/dataset_info.json": '{"demo": {"file_name": "demo.json"}}', "data/demo.json": "[]"}
PARSER = "import argparse\n\nparser = argparse.ArgumentParser()\n{options}args = parser.parse_args()\n"


def test_the_data_set_of_a_prediction_is_renamed() -> None:
    (finding,) = found(target_options_refused, f"{PREDICT} --dataset demo")
    assert mended(finding) == f"{PREDICT} --eval_dataset demo"


def test_the_message_is_the_releases_own() -> None:
    newer = {"packages": {"llamafactory": "0.9.5", "transformers": "5.6.0"}}
    (finding,) = found(target_options_refused, f"{PREDICT} --dataset demo", facts=newer)
    assert "Please make sure eval_dataset be provided or val_size >1e-6" in finding.message


def test_releases_before_eval_dataset_are_left_alone() -> None:
    older = {"packages": {"llamafactory": "0.7.1", "transformers": "4.40.2"}}
    assert found(target_options_refused, f"{PREDICT} --dataset demo", facts=older) == ()


def test_an_unknown_value_counts_as_given() -> None:
    assert found(target_options_refused, f"{PREDICT} --eval_dataset $SET") == ()


def test_a_documents_command_may_leave_arguments_out() -> None:
    text = "```bash\ntorchrun --nproc-per-node 2 -m llamafactory.launcher\n```\n"
    assert found(target_options_refused, None, files={"a.md": text}, lint=("a.md",)) == ()


def test_another_programs_arguments_are_its_own() -> None:
    files = {"train.py": PARSER.format(options="parser.add_argument('--do_predict')\n")}
    assert found(target_options_refused, "torchrun train.py --do_predict --fp16 --bf16", files=files) == ()


def test_a_newer_name_is_known_in_its_release() -> None:
    command = f"{RUN} --model_name_or_path m --dataset demo --do_train --use_dft_loss true"
    older = {"packages": {"llamafactory": "0.9.3", "transformers": "4.52.4"}}
    newer = {"packages": {"llamafactory": "0.9.5", "transformers": "5.6.0"}}
    assert len(found(target_option_unknown, command, facts=older)) == 1
    assert found(target_option_unknown, command, facts=newer) == ()


def test_a_retired_name_is_left_alone_where_the_release_is_not_known() -> None:
    command = f"{RUN} --model_name_or_path m --dataset demo --do_train --evaluation_strategy steps --val_size 0.1"
    assert found(target_option_unknown, command, known=False) == ()
    gpus = found(target_option_unknown, f"{command} --gpus 0,1", known=False)
    assert ["--gpus" in finding.message for finding in gpus] == [True]


def test_a_checkouts_own_arguments_are_advice() -> None:
    files = {"src/train.py": "from llamafactory.train.tuner import run_exp\n\nrun_exp()\n"}
    command = "torchrun --nproc-per-node 2 src/train.py --stage sft --our_own_loss true"
    (own,) = found(target_option_unknown, command, files=files, known=False)
    assert own.severity is Severity.ADVICE
    slip, _ = found(target_option_unknown, f"{command} --learning_rte 1", files=files, known=False)
    assert "--learning_rate 1" in mended(slip)


def test_one_key_of_a_shared_file_is_named_once() -> None:
    text = "llamafactory-cli train sft.yaml\nllamafactory-cli train sft.yaml\n"
    files = {"run.sh": text, "sft.yaml": YAML + "dataset: demo\nsft_packing: true\n"}
    facts = {"packages": {"llamafactory": "0.9.3", "transformers": "4.52.4"}}
    assert len(found(target_option_unknown, "bash run.sh", files=files, facts=facts)) == 1


def test_evaluation_has_arguments_of_its_own() -> None:
    text = "model_name_or_path: m\ntemplate: fewshot\ntask: mmlu_test\nn_shot: 5\nsave_dir: out\nsplit: test\n"
    facts = {"packages": {"llamafactory": "0.9.1", "transformers": "4.45.2"}}
    (finding,) = found(target_option_unknown, "llamafactory-cli eval e.yaml", files={"e.yaml": text}, facts=facts)
    assert "split in e.yaml" in finding.message


def test_words_behind_the_file_have_no_dashes() -> None:
    files = {"sft.yaml": YAML + "dataset: demo\n"}
    (finding,) = found(target_option_unknown, "llamafactory-cli train sft.yaml --learning_rate 1e-4", files=files)
    assert "learning_rate=VALUE" in finding.message
    assert found(target_option_unknown, "llamafactory-cli train sft.yaml learning_rate=1e-4", files=files) == ()


@pytest.mark.parametrize(
    ("flag", "launcher", "torch", "fires"),
    [
        ("--local_rank", "python -m torch.distributed.launch", "1.13.1", False),
        ("--local_rank", "python -m torch.distributed.launch", "2.4.0", True),
        ("--local-rank", "python -m torch.distributed.launch", "2.4.0", False),
        ("--local_rank", "deepspeed", "2.4.0", False),
        ("--local-rank", "deepspeed", "2.4.0", True),
        ("--local_rank", "torchrun", "2.4.0", False),
    ],
)
def test_spellings_of_the_local_rank(flag: str, launcher: str, torch: str, fires: bool) -> None:
    files = {"t.py": PARSER.format(options=f"parser.add_argument('{flag}', type=int)\n")}
    facts = {"packages": {"torch": torch, "deepspeed": "0.16.9"}}
    assert bool(found(local_rank_argument, f"{launcher} t.py", files=files, facts=facts)) is fires


def test_where_torch_is_not_known_the_spelling_is_advice() -> None:
    files = {"t.py": PARSER.format(options="parser.add_argument('--local_rank', type=int)\n")}
    (finding,) = found(local_rank_argument, "python -m torch.distributed.launch t.py", files=files, known=False)
    assert finding.severity is Severity.ADVICE


def test_a_parser_that_a_library_fills_is_left_alone() -> None:
    files = {"t.py": PARSER.format(options="parser = deepspeed.add_config_arguments(parser)\n")}
    assert found(local_rank_argument, "deepspeed t.py", files=files) == ()


def test_the_file_comes_first_again() -> None:
    files = {"src/train.py": "from llamafactory.train.tuner import run_exp\n\nrun_exp()\n", "sft.yaml": YAML}
    (finding,) = found(argument_order_broken, "deepspeed --num_gpus 2 src/train.py sft.yaml", files=files)
    assert mended(finding) == "deepspeed --no_local_rank --num_gpus 2 src/train.py sft.yaml"


def test_a_value_that_is_not_known_may_hold_blanks_but_is_no_finding() -> None:
    assert found(arguments_resplit, 'llamafactory-cli train "$CONFIG"') == ()
    assert len(found(arguments_resplit, 'llamafactory-cli train "my $CONFIG"')) == 1


def test_placeholders_are_advice_in_documents() -> None:
    text = "```bash\ntorchrun train.py --dataset YOUR_DATASET --model <model> --path /path/to/x\n```\n"
    (finding,) = found(placeholder_left, None, files={"a.md": text}, lint=("a.md",))
    assert finding.severity is Severity.ADVICE
    assert finding.message.startswith("YOUR_DATASET ")


def test_placeholders_in_variables_are_found_where_they_stand() -> None:
    command = "HF_HOME=/path/to/cache torchrun train.py"
    (finding,) = found(placeholder_left, command)
    assert finding.location is not None
    assert finding.location.source.slice(finding.location.span) == "/path/to/cache"


@pytest.mark.parametrize("word", ["'<s>'", "'<|im_start|>'", "'<image>'", "./your/results", "demo", "'{task}'"])
def test_words_that_only_look_like_placeholders(word: str) -> None:
    assert found(placeholder_left, f"torchrun train.py --value {word}") == ()


def test_copies_under_mpirun_are_counted() -> None:
    files = {"work.py": "import torch\n\nprint(torch.cuda.device_count())\n"}
    (finding,) = found(independent_copies, "mpirun -np 6 python work.py", files=files)
    assert "6 processes" in finding.message
    assert found(independent_copies, "mpirun -np 6 python work.py", known=False) == ()


def test_several_processes_without_a_gpu_are_advice() -> None:
    (finding,) = found(independent_copies, "accelerate launch --multi_gpu --num_processes 4 t.py", facts={"gpus": []})
    assert finding.severity is Severity.ADVICE
    assert found(independent_copies, "accelerate launch --multi_gpu --num_processes 4 t.py") == ()


def test_an_accelerator_under_mpirun_gets_no_group_of_gpus() -> None:
    files = {"work.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
    (finding,) = found(independent_copies, "mpirun -np 2 python work.py", files=files)
    assert "a group of CPUs" in finding.message


def test_the_interpreter_that_env_finds_is_not_judged() -> None:
    facts = {
        "which": {"torchrun": "/home/me/bin/torchrun"},
        "shebangs": {"/home/me/bin/torchrun": "#!/usr/bin/env python3"},
        "python": {"executable": "/opt/env/bin/python", "prefix": "/opt/env"},
    }
    assert found(launcher_from_other_environment, "torchrun train.py", facts=facts) == ()


def test_a_container_has_commands_of_its_own() -> None:
    facts = {"which": {"deepspeed": "/x/deepspeed"}, "paths": {"/x/deepspeed": {"mode": "-rw-r--r--"}}}
    assert len(found(launcher_not_installed, "deepspeed --num_gpus 2 t.py", facts=facts)) == 1
    assert found(launcher_not_installed, "docker run image deepspeed --num_gpus 2 t.py", facts=facts) == ()


def test_every_data_set_of_a_list_is_looked_up() -> None:
    files = {"sft.yaml": YAML + "dataset: demo,demi\neval_dataset: none\n", **DATA}
    messages = [f.message for f in found(dataset_not_registered, "llamafactory-cli train sft.yaml", files=files)]
    assert [("demi is not in" in text, "none is not in" in text) for text in messages] == [(True, False), (False, True)]


def test_a_slip_in_a_data_sets_name_is_mended() -> None:
    files = {"sft.yaml": YAML + "dataset: dmeo\n", **DATA}
    (finding,) = found(dataset_not_registered, "llamafactory-cli train sft.yaml", files=files)
    assert mended(finding) == YAML + "dataset: demo\n"


def test_a_working_directory_that_nothing_confirms_is_advice() -> None:
    command = "llamafactory-cli train --stage sft --do_train --model_name_or_path m --dataset demo --output_dir out"
    (finding,) = found(dataset_not_registered, command)
    assert finding.severity is Severity.ADVICE


@pytest.mark.parametrize(
    ("template", "release", "fires"),
    [
        ("qwen3", "0.9.2", True),
        ("qwen3", "0.9.3", False),
        ("baichuan2", "0.9.4", False),
        ("baichuan2", "0.9.5", True),
        ("qwen2.5", "0.9.5", True),
        ("never_heard_of", "1.0.0", False),
    ],
)
def test_templates_by_release(template: str, release: str, fires: bool) -> None:
    command = f"llamafactory-cli chat --model_name_or_path m --template {template}"
    facts = {"packages": {"llamafactory": release, "transformers": "4.52.4"}}
    assert bool(found(template_mismatch, command, facts=facts)) is fires


def test_a_models_name_leads_to_its_familys_template() -> None:
    (finding,) = found(template_mismatch, "llamafactory-cli chat --model_name_or_path m --template qwen2.5")
    assert "did you mean qwen?" in finding.message
