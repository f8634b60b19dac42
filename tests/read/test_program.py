from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.program import Program
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.program import read_program


def program(text: str) -> Program:
    found = read_program(Source("x.py", text, "python"))
    assert isinstance(found, Program), found
    return found


def facts(text: str, *kinds: str) -> list[tuple[str, str]]:
    return [(seen.kind, seen.detail) for seen in program(text).seen if not kinds or seen.kind in kinds]


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ('import os\nx = os.environ["RANK"]', "reads-variable", "RANK"),
        ('from os import environ\nx = environ.get("RANK")', "reads-variable", "RANK"),
        ('from os import getenv as g\ng("A")', "reads-variable", "A"),
        ('import os\nos.environ["CUDA_VISIBLE_DEVICES"] = "1"', "sets-variable", "CUDA_VISIBLE_DEVICES=1"),
        ('import os\nos.environ["RANK"] = str(0)', "sets-variable", "RANK=0"),
        ('import os\nos.environ["RANK"] = f()', "sets-variable", "RANK"),
        ('import os\nos.environ.update({"A": "b"})', "sets-variable", "A=b"),
        ('import os\nos.environ.update(A="b")', "sets-variable", "A=b"),
        ('import os\nos.environ.setdefault("MASTER_PORT", "29501")', "defaults-variable", "MASTER_PORT=29501"),
        ('import os\nos.environ["MASTER_PORT"] = "29501"', "literal-port", "29501"),
        ('import torch.distributed as d\nd.init_process_group("nccl", "tcp://a:29501")', "literal-port", "29501"),
        ('import torch.distributed as d\nd.init_process_group("nccl")', "init-process-group", ""),
        ("from torch import distributed\ndistributed.init_process_group(rank=r)", "explicit-rank", "r"),
        ("import deepspeed\ndeepspeed.init_distributed()", "init-process-group", ""),
        ("import torch\ntorch.cuda.set_device(a.local_rank)", "set-device", "a.local_rank"),
        ('m.to("cuda:3")', "cuda-device", "cuda:3"),
        ("m.cuda(2)", "cuda-device", "cuda:2"),
        ('import torch\ntorch.device("cuda", 1)', "cuda-device", "cuda:1"),
        ('p.add_argument("--device", default="cuda:0")', "cuda-device-default", "cuda:0"),
        ('def f(device="cuda:0"): pass', "cuda-device-default", "cuda:0"),
        ('M.from_pretrained("a/b", device_map="auto")', "device-map", "auto"),
        ('M.from_pretrained("a/b", device_map="auto")', "model-name", "a/b"),
        ('M.from_pretrained("a/b", x=1, device_map="auto")', "from-pretrained", 'x=1, device_map="auto"'),
        ('d = {"": 0}\nM.from_pretrained("a/b", device_map=d)', "device-map", '{"": 0}'),
        ("import torch\ntorch.load(f)", "load", "f"),
        ("from accelerate import Accelerator\nAccelerator()", "accelerator", "Accelerator"),
        ("from trl import SFTTrainer\nSFTTrainer(m)", "trainer", "SFTTrainer"),
        ("import pytorch_lightning as pl\npl.Trainer(gpus=2)", "lightning-trainer", "Trainer"),
        (
            "from torch.nn.parallel import DistributedDataParallel as D\nD(m)",
            "ddp",
            "torch.nn.parallel.DistributedDataParallel",
        ),
        ("import torch.nn as nn\nnn.DataParallel(m)", "data-parallel", "torch.nn.DataParallel"),
        (
            "from torch.distributed.fsdp import fully_shard\nfully_shard(m)",
            "fsdp",
            "torch.distributed.fsdp.fully_shard",
        ),
        ("import deepspeed\ndeepspeed.initialize(m)", "deepspeed-initialize", "deepspeed.initialize"),
        ("import torch.multiprocessing as mp\nmp.spawn(f, nprocs=2)", "spawns-ranks", "torch.multiprocessing.spawn"),
        ("while True:\n    input()", "input-loop", "input()"),
        ("if a.talk:\n    while True:\n        input()", "input-loop", "conditional"),
        ('if __name__ == "__main__":\n    while True:\n        input()', "input-loop", "input()"),
        ("import uvicorn\nuvicorn.run(a)", "server", "uvicorn.run"),
        ("import gradio as gr\nwith gr.Blocks() as d: pass\nd.launch()", "server", "d.launch"),
        ("from flask import Flask\napp = Flask('x')\napp.run()", "server", "app.run"),
        ("import colossalai\ncolossalai.launch_from_torch({})", "colossalai-launch", "colossalai.launch_from_torch"),
        ("from llamafactory.train.tuner import run_exp\nrun_exp()", "run-exp", "run_exp"),
        ("m.generate(**x)", "generate", "generate"),
        ("loss.backward()", "backward", "backward"),
        ("import torch\ntorch.optim.AdamW(p)", "optimizer", "AdamW"),
        ("import torch\nx = torch.bfloat16", "bf16", "torch.bfloat16"),
        ("A(bf16=True)", "bf16", "bf16=True"),
        ('import subprocess\nsubprocess.run(["torchrun", "x.py"])', "subprocess-launch", "torchrun"),
        ('import os\nos.system("accelerate launch x.py")', "subprocess-launch", "accelerate"),
        ("from transformers import HfArgumentParser as H\nH(A)", "imports-torch", None),
        ("import fire\nfire.Fire(f)", "other-parser", "fire"),
        ("f(args.local_rank)", "local-rank-use", "args.local_rank"),
        ('import os\nint(os.environ["LOCAL_RANK"])', "local-rank-use", 'os.environ["LOCAL_RANK"]'),
        ("M.from_pretrained(x, device_map={'': s.process_index})", "process-index-as-device", "{'': s.process_index}"),
        ("import torch, os\ntorch.cuda.set_device(int(os.environ['RANK']))", "process-index-as-device", None),
    ],
)
def test_sees(text: str, kind: str, detail: str | None) -> None:
    found = facts(text, kind)
    if kind == "imports-torch":
        assert not found
    elif detail is None:
        assert found
    else:
        assert (kind, detail) in found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("input()", "input-loop"),
        ("s.launch()", "server"),
        ("M.from_pretrained(x, device_map={'': s.local_process_index})", "process-index-as-device"),
        ("import torch, os\ntorch.cuda.set_device(int(os.environ['RANK']) % 8)", "process-index-as-device"),
        ('import torch\ntorch.load(f, map_location="cpu")', "load"),
        ("from tokenizers.trainers import BpeTrainer\nBpeTrainer()", "trainer"),
        ('import os\nos.environ["A"] = "1"', "reads-variable"),
        ("generate(x)", "generate"),
        ("M.from_pretrained(x, device_map=None)", "device-map"),
        ('"""cuda:0 is the first"""', "cuda-device"),
    ],
)
def test_does_not_see(text: str, kind: str) -> None:
    assert not facts(text, kind)


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--x')\na = p.parse_args()", True),
        ("from argparse import ArgumentParser\na = ArgumentParser().parse_args()", True),
        ("import argparse\np = argparse.ArgumentParser()\na, r = p.parse_known_args()", False),
        ("import argparse\np = argparse.ArgumentParser(parents=[q])\na = p.parse_args()", None),
        ("import argparse\np = argparse.ArgumentParser()\nextend(p)\na = p.parse_args()", None),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument(f'--{x}')\na = p.parse_args()", None),
        ("import lib\np = lib.get_default_parser()\na = p.parse_args()", None),
        ("from transformers import HfArgumentParser\nHfArgumentParser(A).parse_args_into_dataclasses()", None),
        ("import argparse\np = argparse.ArgumentParser()", None),
        ("print(1)", None),
    ],
)
def test_says_whether_a_parser_refuses(text: str, strict: bool | None) -> None:
    assert program(text).strict_options is strict


def test_options_with_aliases_and_places() -> None:
    text = "p.add_argument('--é', '-e', type=int, required=True)\np.add_argument('pos')\n"
    first, second = program(text).options
    assert (first.flags, first.required) == (("--é", "-e"), True)
    assert text[first.span.start : first.span.end] == "p.add_argument('--é', '-e', type=int, required=True)"
    assert second.flags == ("pos",)


def test_deepspeed_adds_its_own_options() -> None:
    text = (
        "import argparse, deepspeed\np = argparse.ArgumentParser()\n"
        "p = deepspeed.add_config_arguments(p)\na = p.parse_args()\n"
    )
    assert ("--deepspeed_config",) in [option.flags for option in program(text).options]


def test_imports_are_absolute() -> None:
    found = program("import a.b as c\nfrom d.e import f\nfrom . import g\nfrom .h import i\n")
    assert found.imports == {"a.b", "d.e", "d.e.f"}
    assert found.imports_any("d")


def test_order_tells_what_comes_first() -> None:
    text = 'import os\nimport torch\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"\n'
    found = program(text)
    torch, setting = found.first("imports-torch"), found.first("sets-variable")
    assert torch is not None
    assert setting is not None
    assert torch.order < setting.order


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_places_count_code_points(newline: str) -> None:
    text = newline.join(["# 多卡 😀", "x = 'é'; m.to('cuda:1')", ""])
    (seen,) = program(text).all("cuda-device")
    assert text[seen.span.start : seen.span.end] == "'cuda:1'"


@pytest.mark.parametrize("text", ["def f(:\n", "print 'x'\n", "x = \0", "(" * 500, "!pip install x\n", "\ufffe = "])
def test_what_python_refuses_is_unknown_with_its_place(text: str) -> None:
    found = read_program(Source("bad.py", text, "python"))
    assert isinstance(found, Unknown)
    assert "bad.py" in found.reason


def test_deep_nesting_does_not_crash() -> None:
    found = read_program(Source("deep.py", "x = " + "-" * 5000 + "1", "python"))
    assert isinstance(found, (Unknown, Program))


def test_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    program("print('ran')\nraise SystemExit(1)\n")
    assert not capsys.readouterr().out


PIECES = st.sampled_from(
    [
        "import torch\n",
        "os.environ['A']\n",
        "if x:\n",
        "    y = f(1)\n",
        "def g(a='cuda:0'):\n",
        "m.cuda(é)\n",
        "\r",
        "\t",
        "'",
        "(",
        "😀\n",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=80))
def test_any_text_gives_a_value_and_spans_inside_it(text: str) -> None:
    found = read_program(Source("any.py", text, "python"))
    if isinstance(found, Program):
        for seen in found.seen:
            assert 0 <= seen.span.start <= seen.span.end <= len(text)


def test_is_fast_enough_for_every_start() -> None:
    block = "def f{0}(a, b=1):\n    x = os.environ.get('A{0}')\n    if x:\n        m.to('cuda')\n    return g(a, b)\n\n"
    text = "import os\nimport torch\n" + "".join(block.format(n) for n in range(50))
    best = min(_seconds(text) for _ in range(5))
    assert best < 0.05, f"{best * 1000:.1f} ms for {text.count(chr(10))} lines"


def _seconds(text: str) -> float:
    start = time.perf_counter()
    program(text)
    return time.perf_counter() - start


INIT = "import torch.distributed as dist\n"


@pytest.mark.parametrize(
    "text",
    [
        INIT + 'dist.init_process_group("nccl")\n',
        INIT + 'def main():\n    dist.init_process_group("nccl")\nif __name__ == "__main__":\n    main()\n',
        INIT + "import fire\ndef main():\n    setup()\ndef setup():\n    dist.init_process_group()\nfire.Fire(main)\n",
        'import os\nrank = int(os.environ["LOCAL_RANK"])\n',
        "import colossalai\ncolossalai.launch_from_torch({})\n",
    ],
)
def test_needs_ranks(text: str) -> None:
    assert facts(text, "needs-ranks")


@pytest.mark.parametrize(
    "text",
    [
        INIT + 'if a.distributed:\n    dist.init_process_group("nccl")\n',
        INIT + 'def setup():\n    dist.init_process_group("nccl")\nif a.gpus > 1:\n    setup()\n',
        INIT + 'def setup():\n    dist.init_process_group("nccl")\n',
        INIT + 'try:\n    dist.init_process_group("nccl")\nexcept Exception:\n    pass\n',
        INIT + 'dist.init_process_group("nccl", rank=0, world_size=1)\n',
        INIT + 'dist.init_process_group("nccl", "tcp://127.0.0.1:2345", world_size=1)\n',
        INIT + "import torch.multiprocessing as mp\ndef f(r):\n    dist.init_process_group()\nmp.spawn(f, nprocs=2)\n",
        INIT + "class A:\n    def go(self):\n        dist.init_process_group()\n",
        'import os\nrank = int(os.environ.get("LOCAL_RANK", 0))\n',
        'import os\nrank = int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else 0\n',
    ],
)
def test_may_run_without_ranks(text: str) -> None:
    assert not facts(text, "needs-ranks")
