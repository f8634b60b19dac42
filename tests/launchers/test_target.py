from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_stand_ins import HERE, context_of, one_process, words_of
from mgpu_doctor.launchers import llamafactory, python, swift
from mgpu_doctor.launchers.chain import Context, Plan
from mgpu_doctor.launchers.target import (
    judge_engine,
    judge_purpose,
    judge_spread,
    parameter,
    read_arguments,
    read_target,
)
from mgpu_doctor.model.command import Wrapper
from mgpu_doctor.model.known import Setting, Unknown
from mgpu_doctor.model.launch import Engine, Layer, Target

TRAINER = "from transformers import HfArgumentParser, Trainer\nTrainer(m).train()\n"
RUN_EXP = "from llamafactory.train.tuner import run_exp\nrun_exp()\n"


def arguments(text: str) -> list[tuple[str | None, list[str]]]:
    return [(a.name, [word.shown for word in a.values]) for a in read_arguments(words_of(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--lr 1e-4 --bf16 --out-dir o", [("lr", ["1e-4"]), ("bf16", []), ("out_dir", ["o"])]),
        ("--lr=1e-4 x.yaml", [("lr", ["1e-4"]), (None, ["x.yaml"])]),
        ("x.yaml lr=1 a.b=c", [(None, ["x.yaml"]), ("lr", ["1"]), ("a.b", ["c"])]),
        ("--seed -1 --neg -.5", [("seed", ["-1"]), ("neg", ["-.5"])]),
        ("--names a b --x", [("names", ["a", "b"]), ("x", [])]),
        ("--env A=b c=d", [("env", ["A=b"]), ("c", ["d"])]),
        ("-o out -- --a b", [("o", ["out"]), (None, ["--a"]), (None, ["b"])]),
        ("--model $MODEL --x", [("model", ["$MODEL"]), ("x", [])]),
        ("--x $@EXTRA", [("x", []), (None, ["$@EXTRA"])]),
        ("+hydra.x=1 ++y=2", [("hydra.x", ["1"]), ("y", ["2"])]),
    ],
)
def test_arguments(text: str, expected: list[tuple[str | None, list[str]]]) -> None:
    assert arguments(text) == expected


def test_an_argument_covers_name_and_values() -> None:
    text = "--a 1 2 --b=3"
    first, second = read_arguments(words_of(text))
    assert text[first.span.start : first.span.end] == "--a 1 2"
    assert (second.flag, text[second.values[0].span.start : second.values[0].span.end]) == ("--b", "3")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["--a", "--b=c", "x", "k=v", "-1", "-z", "--", "$U", "$@S", "=", "-", "--="]), max_size=8)
)
def test_every_word_is_in_exactly_one_argument(parts: list[str]) -> None:
    words = words_of(" ".join(parts)) if parts else ()
    found = read_arguments(words)
    covered = [word for word in words if word.value != "--" or any(word is v for a in found for v in a.values)]
    for word in covered:
        holders = [a for a in found if a.span.contains(word.span)]
        assert len(holders) == 1


def target_of(
    text: str, form: str = "script", *, files: dict[str, str] | None = None, modules: dict[str, str] | None = None
) -> tuple[Target, Context]:
    context = context_of(text, files=files, modules=modules)
    return read_target(context.command.words, form, (), context), context


def through(text: str, files: dict[str, str] | None = None) -> tuple[Target, Context, tuple[Layer, ...]]:
    """The target of a command that a launcher of this folder recognises."""
    context = context_of(text, files=files, versions={"llamafactory": "0.9.3", "ms-swift": "3.9.0"})
    for launcher in (llamafactory, swift, python):
        found = launcher.peel(context.command.words, "command", context)
        if found is not None:
            layers = (found.layer,)
            return read_target(found.rest, found.form, layers, context), context, layers
    raise AssertionError(text)


def purpose_of(text: str, files: dict[str, str] | None = None) -> str | None:
    target, context, layers = through(text, files)
    return judge_purpose(target, layers, one_process(), context).known


def test_a_script_that_exists() -> None:
    target, _ = target_of("train.py --lr 1", files={"train.py": TRAINER})
    assert (target.kind, target.value, target.exists, target.framework) == ("script", "train.py", True, "transformers")
    assert target.interactive is False
    assert not isinstance(target.program, Unknown)


def test_a_script_that_does_not() -> None:
    target, _ = target_of("trian.py", files={"train.py": TRAINER})
    assert target.exists is False
    assert isinstance(target.program, Unknown)


def test_a_script_elsewhere_is_unknown() -> None:
    context = context_of("train.py", files={})
    command = replace(context.command, wrappers=(Wrapper("docker run", words_of("docker run image")),))
    target = read_target(command.words, "script", (), replace(context, command=command))
    assert isinstance(target.exists, Unknown)


def test_a_script_with_an_unknown_name() -> None:
    target, _ = target_of("$SCRIPT --lr 1")
    assert target.value is None
    assert isinstance(target.exists, Unknown)
    assert target.argument("lr") is not None


@pytest.mark.parametrize(
    ("name", "files", "kinds", "exists"),
    [
        ("pkg.mod", {"pkg/__init__.py": "", "pkg/mod.py": ""}, {}, True),
        ("pkg.mod", {"pkg/__init__.py": ""}, {}, False),
        ("pkg", {"pkg/__init__.py": "", "pkg/__main__.py": ""}, {}, True),
        ("mod", {"mod.py": ""}, {}, True),
        ("other.mod", {}, {"other.mod": "missing"}, False),
        ("other.mod", {}, {"other.mod": "module"}, True),
        ("not-a-name", {}, {}, False),
    ],
)
def test_modules(name: str, files: dict[str, str], kinds: dict[str, str], exists: bool) -> None:
    target, _ = target_of(name, "module", files=files, modules=kinds)
    assert target.exists is exists


def test_a_module_that_nobody_knows() -> None:
    target, _ = target_of("other.mod", "module")
    assert isinstance(target.exists, Unknown)


def test_pythonpath_counts() -> None:
    context = context_of("pkg.mod", environment={"PYTHONPATH": "lib:."}, files={"lib/pkg/mod.py": RUN_EXP})
    target = read_target(context.command.words, "module", (), context)
    assert (target.exists, target.framework) == (True, "llamafactory")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llamafactory-cli chat c.yaml", True),
        ("llamafactory-cli api c.yaml", True),
        ("llamafactory-cli train c.yaml", False),
        ("llamafactory-cli export c.yaml", False),
        ("swift deploy --model m", True),
        ("swift sft --model m", False),
        ("swift infer --model m", True),
        ("swift infer --model m --val_dataset d", False),
        ("python -m fastchat.serve.cli --model m", True),
        ("python -m vllm.entrypoints.openai.api_server", True),
        ("python talk.py", True),
        ("python serve.py", True),
        ("python train.py", False),
    ],
)
def test_interactive(text: str, expected: bool) -> None:
    files = {
        "talk.py": "while True:\n    input()\n",
        "serve.py": "import uvicorn\nuvicorn.run(app)\n",
        "train.py": TRAINER,
    }
    target, _, _ = through(text, files)
    assert target.interactive is expected


@pytest.mark.parametrize(
    "text", ["llamafactory-cli $CMD c.yaml", "swift infer $@ARGS", "python maybe.py", "python x.py"]
)
def test_interactive_unknown(text: str) -> None:
    target, _, _ = through(text, {"maybe.py": "if a:\n    while True:\n        input()\n"})
    assert isinstance(target.interactive, Unknown)


def test_subcommand_and_configs_of_llamafactory() -> None:
    files = {"sft.yaml": "do_train: true\ndeepspeed: ds.json\n", "ds.json": '{"zero_optimization": {"stage": 3}}'}
    target, context, layers = through("llamafactory-cli train sft.yaml learning_rate=1e-4", files)
    assert (target.kind, target.value, target.subcommand) == ("command", "llamafactory-cli", "train")
    assert target.subcommand_word is not None
    assert [config.role for config in target.configs] == ["llamafactory", "deepspeed"]
    rate, train = parameter(target, "learning_rate"), parameter(target, "do_train")
    assert rate is not None
    assert (rate.value, rate.origin.kind) == ("1e-4", "option")
    assert train is not None
    assert (train.value, train.origin.kind) == (True, "config")
    engine = judge_engine(target, layers, one_process(), context)
    assert engine.known == Engine("deepspeed", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llamafactory-cli chat c.yaml", "chat"),
        ("llamafactory-cli export c.yaml", "export"),
        ("llamafactory-cli train t.yaml", "train"),
        ("llamafactory-cli train p.yaml", "predict"),
        ("llamafactory-cli train --do_predict --eval_dataset d", "predict"),
        ("llamafactory-cli train --do_train true", "train"),
        ("python t.py --do_eval", "evaluate"),
        ("python t.py", "train"),
        ("python gen.py", "predict"),
        ("swift rlhf --model m", "train"),
        ("swift infer --val_dataset d", "predict"),
        ("megatron sft --load m", "train"),
    ],
)
def test_purpose(text: str, expected: str) -> None:
    files = {"t.yaml": "do_train: true\n", "p.yaml": "do_predict: true\n", "t.py": TRAINER, "gen.py": "m.generate(x)\n"}
    assert purpose_of(text, files) == expected


@pytest.mark.parametrize("text", ["python gone.py", "llamafactory-cli train gone.yaml", "python"])
def test_purpose_unknown(text: str) -> None:
    assert purpose_of(text) is None


def plan_of(processes: int, visible: int = 4) -> Plan:
    return replace(one_process(visible), processes_per_node=Setting(processes, HERE))


@pytest.mark.parametrize(
    ("text", "processes", "engine", "spread"),
    [
        ("python t.py --deepspeed z2.json", 4, Engine("deepspeed", 2), "replicas"),
        ("python t.py --deepspeed z3.json", 4, Engine("deepspeed", 3), "split"),
        ("python t.py --fsdp full_shard", 4, Engine("fsdp"), "split"),
        ("python t.py", 4, Engine("ddp"), "replicas"),
        ("python t.py", 1, Engine("data_parallel"), "replicas"),
        ("python map.py", 1, Engine("device_map"), "split"),
        ("python dp.py", 1, Engine("data_parallel"), "replicas"),
        ("python ddp.py", 2, Engine("ddp"), "replicas"),
        ("llamafactory-cli train t.yaml", 4, Engine("ddp"), "replicas"),
        ("llamafactory-cli chat t.yaml", 1, Engine("device_map"), "split"),
        ("swift sft --deepspeed zero3", 4, Engine("deepspeed", 3), "split"),
        ("swift sft --deepspeed default-zero2", 4, Engine("deepspeed", 2), "replicas"),
    ],
)
def test_engine_and_spread(text: str, processes: int, engine: Engine, spread: str) -> None:
    files = {
        "t.py": TRAINER,
        "t.yaml": "do_train: true\n",
        "z2.json": '{"zero_optimization": {"stage": 2}}',
        "z3.json": '{"zero_optimization": {"stage": 3}}',
        "map.py": 'M.from_pretrained("a", device_map="auto").generate(x)\n',
        "dp.py": "import torch\ntorch.nn.DataParallel(m)\n",
        "ddp.py": "from torch.nn.parallel import DistributedDataParallel as DDP\nDDP(m)\n",
    }
    target, context, layers = through(text, files)
    plan = plan_of(processes)
    found = judge_engine(target, layers, plan, context)
    assert found.known == engine
    purpose = judge_purpose(target, layers, plan, context)
    assert judge_spread(target, plan, found, purpose, context).known == spread


def test_one_device_is_single() -> None:
    target, context, layers = through("python t.py", {"t.py": TRAINER})
    plan = plan_of(1, 1)
    engine = judge_engine(target, layers, plan, context)
    assert engine.known == Engine("none")
    assert judge_spread(target, plan, engine, judge_purpose(target, layers, plan, context), context).known == "single"


def test_an_unreadable_deepspeed_file_leaves_the_stage_open() -> None:
    target, context, layers = through("python t.py --deepspeed gone.json", {"t.py": TRAINER})
    engine = judge_engine(target, layers, plan_of(4), context).known
    assert engine is not None
    assert engine.name == "deepspeed"
    assert isinstance(engine.stage, Unknown)


def test_an_unread_program_says_nothing_of_its_engine() -> None:
    target, context, layers = through("python gone.py")
    assert isinstance(judge_engine(target, layers, plan_of(4), context).value, Unknown)
    assert isinstance(judge_engine(target, layers, plan_of(1), context).value, Unknown)
