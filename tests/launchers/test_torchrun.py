"""What torchrun and its relatives start, and where the ranks meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launching import HOST, launch, try_launch, with_packages
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch


def _port(found: Launch) -> object:
    assert found.rendezvous is not None
    assert found.rendezvous.port is not None
    return found.rendezvous.port.value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torchrun t.py", "torchrun"),
        ("/opt/conda/bin/torchrun t.py", "torchrun"),
        ("python -m torch.distributed.run t.py", "torch.distributed.run"),
        ("python3 -u -m torch.distributed.launch t.py", "torch.distributed.launch"),
        ("python /opt/conda/bin/torchrun t.py", "torchrun"),
    ],
)
def test_every_name_is_recognised(text: str, name: str) -> None:
    found = launch(text)
    assert [layer.launcher for layer in found.layers] == [name]
    assert (found.target.kind, found.target.value) == ("script", "t.py")


def test_words_that_name_the_launcher_include_the_interpreter() -> None:
    layer = launch("python -m torch.distributed.run t.py").layers[0]
    assert [word.value for word in layer.command_words] == ["python", "-m", "torch.distributed.run"]


@pytest.mark.parametrize(
    "text", ["torchrun --help", "torchrun", "torchrunner t.py", "python -m torch.distributed.elastic"]
)
def test_what_is_no_launch(text: str) -> None:
    found = try_launch(text)
    assert found is None or found.layer("torchrun", "torch.distributed.run") is None


@pytest.mark.parametrize(("value", "count"), [("4", 4), ("gpu", 8), ("auto", 8)])
def test_processes_per_node(value: str, count: int) -> None:
    assert launch(f"torchrun --nproc-per-node {value} t.py").processes_per_node.value == count


def test_auto_counts_visible_devices_only() -> None:
    assert launch("CUDA_VISIBLE_DEVICES=1,2,3 torchrun --nproc_per_node gpu t.py").world_size.value == 3


def test_default_is_one_process() -> None:
    assert launch("torchrun t.py").world_size.value == 1


def test_world_is_processes_times_nodes() -> None:
    found = launch("torchrun --nnodes 2 --nproc_per_node 8 --node_rank 1 --master_addr 10.0.0.1 t.py")
    assert (found.nodes.value, found.node_rank.value, found.world_size.value) == (2, 1, 16)
    assert found.rendezvous is not None
    assert found.rendezvous.address is not None
    assert found.rendezvous.address.value == "10.0.0.1"
    assert _port(found) == 29500


def test_an_elastic_range_has_no_fixed_number_of_nodes() -> None:
    assert isinstance(launch("torchrun --nnodes 1:4 --nproc_per_node 8 t.py").nodes.value, Unknown)


@pytest.mark.parametrize(("torch", "port"), [("2.6.0", 29500), ("2.13.0", 0)])
def test_default_port_on_one_node_differs_by_release(torch: str, port: int) -> None:
    assert _port(launch("torchrun --nproc_per_node 2 t.py", with_packages(torch=torch))) == port


@pytest.mark.parametrize("torch", ["1.13.1", "2.6.0", "2.13.0"])
def test_a_given_port_is_bound(torch: str) -> None:
    assert _port(launch("torchrun --nproc_per_node 2 --master_port 29501 t.py", with_packages(torch=torch))) == 29501


@pytest.mark.parametrize("torch", ["2.6.0", "2.13.0"])
def test_master_port_of_the_environment_is_not_read(torch: str) -> None:
    text = "MASTER_PORT=4444 torchrun --nproc_per_node 2 t.py"
    assert _port(launch(text, with_packages(torch=torch))) != 4444


def test_standalone_takes_a_free_port() -> None:
    found = launch("torchrun --standalone --nproc_per_node 2 --master_port 29501 t.py")
    assert _port(found) == 0
    assert found.rendezvous is not None
    assert found.rendezvous.backend.value == "c10d"


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("node0:29400", "node0", 29400),
        ("node0", "node0", 29400),
        ("[::1]:1234", "::1", 1234),
        ("localhost:0", "localhost", 0),
    ],
)
def test_endpoint(endpoint: str, host: str, port: int) -> None:
    found = launch(f"torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint {endpoint} t.py")
    assert found.rendezvous is not None
    assert found.rendezvous.address is not None
    assert (found.rendezvous.address.value, _port(found)) == (host, port)


def test_variables_of_the_platform_fill_in() -> None:
    found = launch("PET_NNODES=2 PET_NPROC_PER_NODE=8 PET_MASTER_ADDR=10.1.1.1 PET_NODE_RANK=1 torchrun t.py")
    assert (found.nodes.value, found.processes_per_node.value, found.node_rank.value) == (2, 8, 1)
    assert found.processes_per_node.origin.detail == "PET_NPROC_PER_NODE"


def test_an_option_wins_over_the_variable() -> None:
    assert launch("PET_NPROC_PER_NODE=8 torchrun --nproc-per-node 2 t.py").processes_per_node.value == 2


def test_an_environment_that_nobody_looked_at_may_hold_the_address() -> None:
    facts = replace(HOST, environment=Unknown("not looked at"))
    found = launch("torchrun --nnodes 2 --nproc_per_node 8 t.py", facts)
    assert found.rendezvous is not None
    assert found.rendezvous.address is not None
    assert isinstance(found.rendezvous.address.value, Unknown)
    assert isinstance(found.node_rank.value, Unknown)


@pytest.mark.parametrize(
    ("options", "kind"), [("", "script"), ("-m ", "module"), ("--module ", "module"), ("--no-python ", "command")]
)
def test_kind_of_target(options: str, kind: str) -> None:
    assert launch(f"torchrun --nproc_per_node 2 {options}pkg.train --x").target.kind == kind


def test_refusals_behind_the_parser() -> None:
    found = launch("python -m torch.distributed.launch --no_python -m a.b")
    assert [problem.kind for problem in found.layers[0].problems] == ["conflict", "refused"]
    assert launch("torchrun --nproc_per_node two t.py").layers[0].problems[0].kind == "invalid-value"
    assert launch("torchrun --nnodes 3:2 t.py").layers[0].problems[0].kind == "invalid-value"


def test_nested_launchers_multiply() -> None:
    found = launch("torchrun --nproc_per_node 2 --no-python torchrun --nproc_per_node 3 t.py")
    assert [layer.launcher for layer in found.layers] == ["torchrun", "torchrun"]
    assert found.world_size.value == 6


def test_options_in_a_variable_leave_the_counts_unknown() -> None:
    found = launch("torchrun $DISTRIBUTED_ARGS --nonsense train.py --x")
    assert found.layers[0].opaque is not None
    assert found.layers[0].problems == ()
    assert isinstance(found.processes_per_node.value, Unknown)
    assert found.target.value == "train.py"


def test_each_rank_has_its_device() -> None:
    found = launch("CUDA_VISIBLE_DEVICES=6,2 torchrun --nproc_per_node 3 t.py")
    assert not isinstance(found.ranks, Unknown)
    assert [rank.physical_index for rank in found.ranks[:2]] == [6, 2]
    assert isinstance(found.ranks[2].visible_index, Unknown)
