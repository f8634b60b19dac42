"""What the launchers really do with their options, against what we say: processes, nodes, GPUs, port.

Each launcher's own code runs up to the point where it would start processes, with a made-up number of GPUs.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launching import HOST, launch, with_packages
from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Setting, Unknown
from mgpu_doctor.model.launch import Launch
from oracle_environments import python_of, run_parser

CASES = 600
RELEASES = {
    "old": {"accelerate": "1.7.0", "deepspeed": "0.16.9", "torch": "2.13.0"},
    "new": {"accelerate": "1.15.0", "deepspeed": "0.19.8", "torch": "2.13.0"},
}

ACCELERATE = """
import os, sys, tempfile, logging
import torch
from accelerate.commands import launch as module
from accelerate.commands.config import config_args
from accelerate.utils import launch as helper
logging.disable(logging.CRITICAL)
helper.is_port_in_use = lambda port=None: False
helper.get_free_port = lambda: 0
seen = {}
def record(name, prepare):
    def called(args):
        if prepare is not None:
            made = prepare(args)
            environment = made[1] if isinstance(made, tuple) else made
            seen["command"] = made[0] if isinstance(made, tuple) else None
            seen["visible"] = environment.get("CUDA_VISIBLE_DEVICES")
            seen["stage"] = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        seen.update(launcher=name, per_node=getattr(args, "nproc_per_node", None),
                    nodes=getattr(args, "nnodes", None), node_rank=getattr(args, "node_rank", None),
                    port=getattr(args, "main_process_port", None), backend=getattr(args, "rdzv_backend", None))
    return called
module.multi_gpu_launcher = record("multi", helper.prepare_multi_gpu_env)
module.deepspeed_launcher = record("deepspeed", helper.prepare_deepspeed_cmd_env)
module.simple_launcher = record("simple", helper.prepare_simple_launcher_cmd_env)
parser = module.launch_command_parser()
result = []
folder = tempfile.mkdtemp()
os.chdir(folder)
for case in payload:
    torch.cuda.device_count = lambda: case["gpus"]
    torch.cuda.is_available = lambda: case["gpus"] > 0
    default = os.path.join(folder, "default.yaml")
    if os.path.exists(default):
        os.remove(default)
    if case["default"] is not None:
        open(default, "w").write(case["default"])
    module.default_config_file = config_args.default_config_file = default
    if case["config"] is not None:
        open("c.yaml", "w").write(case["config"])
    os.environ["CUDA_VISIBLE_DEVICES"] = case["visible"]
    seen.clear()
    try:
        module.launch_command(parser.parse_args(case["argv"]))
        result.append(dict(seen))
    except BaseException as error:
        result.append({"error": f"{type(error).__name__}: {error}"})
"""

DEEPSPEED = """
import base64, json, os, logging, tempfile
from deepspeed.launcher import runner
from deepspeed.launcher import multinode_runner
logging.disable(logging.CRITICAL)
captured = []
class Done:
    returncode = 0
    def __init__(self, cmd, env=None): captured.append(cmd)
    def wait(self): return 0
class Fake:
    count = 0
    def visible_devices_envs(self): return ["CUDA_VISIBLE_DEVICES"]
    def device_count(self): return self.count
    def export_envs(self): return []
runner.subprocess.Popen = Done
fake = Fake()
runner.get_accelerator = lambda: fake
multinode_runner.PDSHRunner.backend_exists = lambda self: True
folder = tempfile.mkdtemp()
os.chdir(folder)
open("hosts", "w").write("a slots=4\\nb slots=4\\n")
result = []
for case in payload:
    captured.clear()
    fake.count = case["gpus"]
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if case["visible"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = case["visible"]
    try:
        runner.main(case["argv"])
        text = " ".join(captured[-1])
        world = text.split("--world_info=")[1].split()[0].strip("'\\"")
        port = text.split("--master_port=")[1].split()[0]
        result.append({"world": json.loads(base64.urlsafe_b64decode(world)), "port": int(port)})
    except BaseException as error:
        result.append({"error": f"{type(error).__name__}: {error}"})
"""

TORCHRUN = """
import os
import torch
import torch.distributed.run as run
captured = []
def keep(config, entrypoint):
    captured.append(config)
    return lambda *rest: None
run.elastic_launch = keep
result = []
for case in payload:
    captured.clear()
    torch.cuda.device_count = lambda: case["gpus"]
    torch.cuda.is_available = lambda: case["gpus"] > 0
    torch.accelerator.is_available = torch.cuda.is_available
    torch.accelerator.device_count = torch.cuda.device_count
    torch.accelerator.current_accelerator = lambda: torch.device("cuda")
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]
    os.environ.update(case["environment"])
    try:
        run.run(run.get_args_parser().parse_args(case["argv"]))
        config = captured[0]
        result.append({"nodes": [config.min_nodes, config.max_nodes], "per_node": config.nproc_per_node,
                       "backend": config.rdzv_backend, "endpoint": config.rdzv_endpoint,
                       "node_rank": config.rdzv_configs.get("rank")})
    except BaseException as error:
        result.append({"error": f"{type(error).__name__}: {error}"})
"""


def _host(environment: str, gpus: int, default: str | None = None, variables: dict[str, str] | None = None) -> Facts:
    found = with_packages(**RELEASES[environment])
    cards = tuple(Gpu(index, "NVIDIA A100", f"GPU-{index}", 80.0) for index in range(gpus))
    return replace(found, gpus=cards, accelerate_default_config=default, environment=variables or {})


def _ask(environment: str, snippet: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if python_of(environment) is None:
        pytest.skip(f"no oracle environment {environment!r}: run python tools/oracles.py")
    answers = run_parser(environment, snippet, cases)
    assert isinstance(answers, list)
    return answers


def _same(setting: Setting[Any] | None, value: object) -> bool:
    return setting is not None and not isinstance(setting.value, Unknown) and str(setting.value) == str(value)


def _entries(found: Launch) -> list[str] | None:
    visible = found.visible.value
    return None if isinstance(visible, Unknown) else list(visible.entries)


def _some(chance: random.Random, options: dict[str, Callable[[], str | None]], most: int) -> list[str]:
    words: list[str] = []
    for flag in chance.sample(sorted(options), chance.randint(0, most)):
        value = options[flag]()
        words.extend([flag] if value is None else [flag, value])
    return words


def _config(chance: random.Random) -> str:
    kind = chance.choice(["NO", "MULTI_GPU", "MULTI_GPU", "DEEPSPEED", "FSDP", "MEGATRON_LM", "MULTI_CPU"])
    lines = ["compute_environment: LOCAL_MACHINE", f"distributed_type: '{kind}'"]
    for key, values in {
        "num_processes": ["1", "2", "8"],
        "num_machines": ["1", "2"],
        "machine_rank": ["0", "1"],
        "gpu_ids": ["all", "'0,1'", "'2,3'"],
        "main_process_port": ["29501", "0"],
        "rdzv_backend": ["static", "c10d"],
        "main_process_ip": ["10.0.0.1"],
    }.items():
        if chance.random() < 0.5:
            lines.append(f"{key}: {chance.choice(values)}")
    if kind == "DEEPSPEED":
        lines.append("deepspeed_config:\n  deepspeed_multinode_launcher: standard")
        if chance.random() < 0.7:
            lines.append(f"  zero_stage: {chance.choice([0, 1, 2, 3])}")
    return "\n".join(lines) + "\n"


@pytest.mark.oracle
@pytest.mark.parametrize("environment", ["old", "new"])
def test_accelerate(environment: str, tmp_path: Path) -> None:
    chance = random.Random(5)
    cases: list[dict[str, Any]] = []
    for _ in range(CASES):
        options: dict[str, Callable[[], str | None]] = {
            "--num_processes": lambda: chance.choice(["1", "2", "4", "8"]),
            "--num_machines": lambda: chance.choice(["1", "2"]),
            "--machine_rank": lambda: chance.choice(["0", "1"]),
            "--main_process_port": lambda: chance.choice(["29510", "0"]),
            "--main_process_ip": lambda: "10.0.0.1",
            "--gpu_ids": lambda: chance.choice(["all", "1,2", "3"]),
            "--multi_gpu": lambda: None,
            "--cpu": lambda: None,
            "--use_deepspeed": lambda: None,
            "--use_fsdp": lambda: None,
            "--zero_stage": lambda: chance.choice(["1", "3"]),
            "--rdzv_backend": lambda: "c10d",
        }
        argv = _some(chance, options, 5)
        config = _config(chance) if chance.random() < 0.5 else None
        if config is not None:
            argv = ["--config_file", "c.yaml", *argv]
        gpus = chance.choice([0, 1, 2, 4, 8])
        cases.append(
            {
                "argv": [*argv, "t.py"],
                "config": config,
                "default": _config(chance) if chance.random() < 0.3 else None,
                "gpus": gpus,
                "visible": ",".join(map(str, range(gpus))),
            }
        )
    wrong = []
    started = 0
    for case, answer in zip(cases, _ask(environment, ACCELERATE, cases), strict=True):
        if case["config"] is not None:
            (tmp_path / "c.yaml").write_text(str(case["config"]))
        facts = _host(environment, case["gpus"], case["default"], {"CUDA_VISIBLE_DEVICES": case["visible"]})
        found = launch("accelerate launch " + shlex.join(case["argv"]), facts, tmp_path)
        started += "error" not in answer
        complaint = _accelerate_differs(found, case, answer)
        if complaint:
            wrong.append(f"{complaint}: {case['argv']} {case['config']!r} default {case['default']!r} {answer}")
    assert started > CASES // 3
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(wrong[:25])


def _accelerate_differs(found: Launch, case: dict[str, Any], answer: dict[str, Any]) -> str | None:
    problems = found.layers[0].problems
    if "error" in answer:
        return None
    if problems:
        return f"we see {problems[0].message}"
    if answer["launcher"] == "simple":
        return None if _same(found.world_size, 1) else f"one process, we say {found.world_size.value}"
    if answer.get("command"):
        return None
    if not _same(found.processes_per_node, answer["per_node"]):
        return f"{answer['per_node']} processes, we say {found.processes_per_node.value}"
    if not _same(found.nodes, answer["nodes"] or 1):
        return f"{answer['nodes']} nodes, we say {found.nodes.value}"
    if answer["nodes"] and not _same(found.node_rank, answer["node_rank"]):
        return f"node rank {answer['node_rank']}, we say {found.node_rank.value}"
    return _accelerate_place_differs(found, case, answer)


def _accelerate_place_differs(found: Launch, case: dict[str, Any], answer: dict[str, Any]) -> str | None:
    if found.rendezvous is None or not _same(found.rendezvous.port, answer["port"]):
        return f"port {answer['port']}, we say {found.rendezvous and found.rendezvous.port}"
    if not _same(found.rendezvous.backend, answer["backend"]):
        return f"backend {answer['backend']}, we say {found.rendezvous.backend.value}"
    wanted = [entry for entry in (answer["visible"] or "").split(",") if entry and int(entry) < case["gpus"]]
    if _entries(found) != wanted:
        return f"visible {answer['visible']}, we say {_entries(found)}"
    if answer["launcher"] == "deepspeed" and (found.engine.known is None or found.engine.known.name != "deepspeed"):
        return f"deepspeed, we say {found.engine.value}"
    if answer.get("stage") and found.engine.known is not None and str(found.engine.known.stage) != answer["stage"]:
        return f"stage {answer['stage']}, we say {found.engine.known.stage}"
    return None


@pytest.mark.oracle
@pytest.mark.parametrize("environment", ["old", "new"])
def test_deepspeed(environment: str, tmp_path: Path) -> None:
    chance = random.Random(6)
    (tmp_path / "hosts").write_text("a slots=4\nb slots=4\n")
    cases: list[dict[str, Any]] = []
    for _ in range(CASES):
        hostfile = chance.random() < 0.3
        hosts = (
            ["a", "b", "a@b", "a:0,1@b:3", "b:2,1", "a:0"]
            if hostfile
            else ["localhost", "localhost:1,0", "localhost:3"]
        )
        options: dict[str, Callable[[], str | None]] = {
            "--num_gpus": lambda: chance.choice(["1", "2", "4"]),
            "--num_nodes": lambda: chance.choice(["1", "2"]),
            "--include": partial(chance.choice, hosts),
            "--exclude": partial(chance.choice, hosts),
            "--master_port": lambda: "29511",
        }
        argv = _some(chance, options, 2)
        if hostfile:
            argv = ["--hostfile", "hosts", "--no_ssh_check", "--master_addr", "10.0.0.1", *argv]
        visible = chance.choice([None, None, "0,1", "3,1", "2", ""])
        cases.append({"argv": [*argv, "t.py"], "gpus": chance.choice([1, 4, 8]), "visible": visible})
    wrong = []
    started = 0
    for case, answer in zip(cases, _ask(environment, DEEPSPEED, cases), strict=True):
        variables = {} if case["visible"] is None else {"CUDA_VISIBLE_DEVICES": case["visible"]}
        found = launch(
            "deepspeed " + shlex.join(case["argv"]), _host(environment, case["gpus"], None, variables), tmp_path
        )
        started += "error" not in answer
        complaint = _deepspeed_differs(found, case, answer)
        if complaint:
            wrong.append(f"{complaint}: {case} {answer}")
    assert started > CASES // 3
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(wrong[:25])


def _deepspeed_differs(found: Launch, case: dict[str, Any], answer: dict[str, Any]) -> str | None:
    problems = found.layers[0].problems
    if "error" in answer or not answer["world"]:
        return None
    if problems:
        return f"we see {problems[0].message}"
    sizes = {len(slots) for slots in answer["world"].values()}
    if len(sizes) == 1 and not _same(found.processes_per_node, sizes.pop()):
        return f"{answer['world']}, we say {found.processes_per_node.value}"
    if not _same(found.nodes, len(answer["world"])):
        return f"{len(answer['world'])} nodes, we say {found.nodes.value}"
    first = [str(slot) for slot in next(iter(answer["world"].values())) if slot < case["gpus"]]
    if _entries(found) != first:
        return f"visible {first}, we say {_entries(found)}"
    if found.rendezvous is None or not _same(found.rendezvous.port, answer["port"]):
        return f"port {answer['port']}"
    return None


@pytest.mark.oracle
@pytest.mark.parametrize("environment", ["new"])
def test_torchrun(environment: str) -> None:
    chance = random.Random(7)
    cases: list[dict[str, Any]] = []
    for _ in range(CASES):
        options: dict[str, Callable[[], str | None]] = {
            "--nproc-per-node": lambda: chance.choice(["1", "2", "gpu", "auto", "8"]),
            "--nnodes": lambda: chance.choice(["1", "2", "1:1", "1:3"]),
            "--node_rank": lambda: chance.choice(["0", "1"]),
            "--master_addr": lambda: "10.0.0.1",
            "--master-port": lambda: chance.choice(["29511", "0"]),
            "--rdzv_backend": lambda: chance.choice(["c10d", "static", "etcd-v2"]),
            "--rdzv-endpoint": lambda: chance.choice(["h:1234", "localhost:0", "h"]),
            "--standalone": lambda: None,
        }
        environment_of = {
            name: value
            for name, value in {
                "PET_NNODES": "2",
                "PET_NPROC_PER_NODE": "3",
                "PET_NODE_RANK": "1",
                "PET_MASTER_PORT": "4321",
                "PET_STANDALONE": "1",
                "PET_RDZV_BACKEND": "c10d",
            }.items()
            if chance.random() < 0.08
        }
        cases.append(
            {
                "argv": [*_some(chance, options, 4), "t.py"],
                "gpus": chance.choice([1, 4, 8]),
                "environment": environment_of,
            }
        )
    wrong = []
    for case, answer in zip(cases, _ask(environment, TORCHRUN, cases), strict=True):
        facts = _host(environment, case["gpus"], None, case["environment"])
        complaint = _torchrun_differs(launch("torchrun " + shlex.join(case["argv"]), facts), answer)
        if complaint:
            wrong.append(f"{complaint}: {case} {answer}")
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(wrong[:25])


def _torchrun_differs(found: Launch, answer: dict[str, Any]) -> str | None:
    problems = found.layers[0].problems
    if "error" in answer:
        return None if problems else "refused"
    if problems:
        return f"we see {problems[0].message}"
    if not _same(found.processes_per_node, answer["per_node"]):
        return f"{answer['per_node']} processes, we say {found.processes_per_node.value}"
    least, most = answer["nodes"]
    if least == most and not _same(found.nodes, most):
        return f"{most} nodes, we say {found.nodes.value}"
    if least != most and not isinstance(found.nodes.value, Unknown):
        return f"{least} to {most} nodes, we say {found.nodes.value}"
    rendezvous = found.rendezvous
    if rendezvous is None or not _same(rendezvous.backend, answer["backend"]):
        return f"backend {answer['backend']}, we say {rendezvous and rendezvous.backend.value}"
    host, _colon, port = answer["endpoint"].partition(":")
    if port and not _same(rendezvous.port, port):
        return f"port {port}, we say {rendezvous.port and rendezvous.port.value}"
    if host and not _same(rendezvous.address, host):
        return f"address {host}, we say {rendezvous.address and rendezvous.address.value}"
    if answer["node_rank"] is not None and not _same(found.node_rank, answer["node_rank"]):
        return f"node rank {answer['node_rank']}, we say {found.node_rank.value}"
    return None


def test_the_host_of_these_cases_is_the_standard_one() -> None:
    assert _host("old", 8).environment == HOST.environment
