"""The rendezvous rules beyond their examples: severities by release, places, fixes, and texts to leave alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pytest

from mgpu_doctor.authoring import Check, Example, Finding, Severity
from mgpu_doctor.testing import run_example

BUSY = {"29500": {"pid": 4127, "command": "python gui.py"}}


def findings(
    name: str,
    command: str | None = None,
    *,
    facts: Mapping[str, object] | None = None,
    files: Mapping[str, str] | None = None,
    lint: tuple[str, ...] = (),
) -> tuple[Finding, ...]:
    module = importlib.import_module(f"mgpu_checks.rendezvous.{name}")
    example = Example("a test", command, files=files or {}, facts=facts, lint=lint)
    report = run_example(Check(module.RULE, module.find), example)
    assert not report.problems
    assert not [outcome for outcome in report.outcomes if outcome.kind.value == "crashed"]
    return report.findings


def text_of(finding: Finding) -> str:
    assert finding.location is not None
    return finding.location.source.slice(finding.location.span)


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ("0.20.3", Severity.ERROR),
        ("1.0.1", Severity.ERROR),
        ("1.7.0", Severity.ERROR),
        ("1.8.0", Severity.WARNING),
        ("1.15.0", Severity.WARNING),
    ],
)
def test_a_busy_port_by_release_of_accelerate(version: str, severity: Severity) -> None:
    facts = {"ports_in_use": BUSY, "packages": {"accelerate": version, "torch": "2.4.1"}}
    (found,) = findings("port_in_use", "accelerate launch --multi_gpu --num_processes 2 train.py", facts=facts)
    assert found.severity is severity
    assert "4127" in found.message
    assert "python gui.py" in found.message


def test_a_busy_port_on_several_machines_is_an_error_in_every_release() -> None:
    command = "accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.5 "
    facts = {"ports_in_use": BUSY, "packages": {"accelerate": "1.15.0"}}
    (found,) = findings("port_in_use", command + "--main_process_port 29500 --num_processes 4 t.py", facts=facts)
    assert found.severity is Severity.ERROR
    assert text_of(found) == "--main_process_port 29500"
    assert found.fix is not None
    assert not found.fix.safe


def test_the_fix_takes_a_port_that_was_found_free() -> None:
    facts = {"ports_in_use": BUSY, "free_ports": [29777]}
    (found,) = findings("port_in_use", "deepspeed --num_gpus 2 train.py", facts=facts)
    assert found.fix is not None
    assert found.fix.edits[0].replacement == " --master_port 29777"
    assert found.fix.safe


def test_a_port_in_a_container_is_its_own() -> None:
    command = "docker run --gpus all image torchrun --nproc_per_node 2 --master_port 29500 train.py"
    assert not findings("port_in_use", command, facts={"ports_in_use": BUSY})


def test_unknown_ports_are_a_skip_and_no_finding() -> None:
    assert not findings("port_in_use", "deepspeed --num_gpus 2 train.py", facts=None)


def test_each_launch_gets_a_port_of_its_own() -> None:
    text = "".join(f"deepspeed --include localhost:{gpu} train.py &\n" for gpu in range(4)) + "wait\n"
    found = findings("port_shared", lint=("many.sh",), files={"many.sh": text})
    ports = [edit.replacement for finding in found if finding.fix is not None for edit in finding.fix.edits]
    assert len(found) == len(set(ports)) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("for gpu in 0 1 2; do\n  deepspeed --include localhost:$gpu --master_port 29600 t.py &\ndone\nwait\n", 1),
        ("for gpu in 0 1; do\n  deepspeed --include localhost:$gpu --master_port $((29600 + gpu)) t.py &\ndone\n", 0),
        ("for i in 1 2; do\n  deepspeed --num_gpus 2 t.py &\n  wait\ndone\n", 0),
        ("for host in a b; do\n  ssh $host deepspeed --num_gpus 2 t.py &\ndone\nwait\n", 0),
        ("for i in 1 2; do\n  deepspeed --num_gpus 2 t.py\ndone\n", 0),
    ],
)
def test_loops(text: str, count: int) -> None:
    assert len(findings("port_shared", lint=("loop.sh",), files={"loop.sh": text})) == count


def test_jobs_of_called_scripts() -> None:
    files = {
        "both.sh": "bash a.sh &\nbash b.sh\n",
        "a.sh": "deepspeed --include localhost:0 t.py\n",
        "b.sh": "deepspeed --include localhost:1 t.py\n",
    }
    assert len(findings("port_shared", "bash both.sh", files=files)) == 1
    files["both.sh"] = "bash a.sh\nbash b.sh\n"
    assert not findings("port_shared", "bash both.sh", files=files)


def test_alternatives_do_not_run_together() -> None:
    text = 'if [ "$1" = a ]; then\n  deepspeed --num_gpus 2 a.py &\nelse\n  deepspeed --num_gpus 2 b.py &\nfi\n'
    assert not findings("port_shared", lint=("either.sh",), files={"either.sh": text})


@pytest.mark.parametrize(
    "command",
    [
        "torchrun --nnodes=$NNODES --nproc_per_node=8 train.py",
        "torchrun --nnodes=2 --nproc_per_node=8 train.py",
        "torchrun --nnodes=2 --node_rank=$RANK --nproc_per_node=8 train.py",
        "torchrun --nnodes=1:4 --rdzv_backend=c10d --rdzv_endpoint=$HOST train.py",
        "torchrun --nnodes=2 --rdzv_backend=etcd-v2 --rdzv_endpoint=etcd:2379 train.py",
        "python -m torch.distributed.launch --nnodes=$N --node_rank=$R --master_addr=$A --master_port=$P train.py",
        "NNODES=$N NODE_RANK=$R MASTER_ADDR=$A MASTER_PORT=$P llamafactory-cli train a.yaml",
        "accelerate launch --num_machines $N --machine_rank $R --main_process_ip $A train.py",
        "srun torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint $HEAD:29500 --nproc_per_node 8 train.py",
        "deepspeed --hostfile /job/hostfile --num_nodes 2 train.py",
    ],
)
@pytest.mark.parametrize(
    "rule",
    ["port_invalid", "rendezvous_missing", "node_rank_wrong", "process_count_not_total", "master_address_wrong"],
)
def test_what_cannot_be_told_from_the_text_is_left_alone(rule: str, command: str) -> None:
    assert not findings(rule, command)


def test_a_rehearsal_of_two_nodes_may_use_loopback() -> None:
    text = (
        "for rank in 0 1; do\n"
        "  torchrun --nnodes 2 --node_rank $rank --master_addr 127.0.0.1 --master_port 29600 t.py &\n"
        "done\nwait\n"
    )
    assert not findings("master_address_wrong", lint=("try.sh",), files={"try.sh": text})


@pytest.mark.parametrize(("version", "severity"), [("0.14.5", Severity.ERROR), ("0.16.9", Severity.WARNING)])
def test_slots_by_release_of_deepspeed(version: str, severity: Severity) -> None:
    (found,) = findings(
        "hostfile_mismatch",
        "deepspeed --hostfile hosts --include alpha:0,2 train.py",
        facts={"packages": {"deepspeed": version}},
        files={"hosts": "alpha slots=2\n"},
    )
    assert found.severity is severity
    assert found.related[0].location is not None
    assert found.related[0].location.source.slice(found.related[0].location.span) == "alpha slots=2"


def test_places_in_a_hostfile_with_windows_line_endings() -> None:
    found = findings(
        "hostfile_mismatch",
        "deepspeed --hostfile h train.py",
        files={"h": "a slots=2\r\n  b slots=two\r\na slots=1\r\n"},
    )
    assert [text_of(finding) for finding in found] == ["b slots=two", "a slots=1"]


@pytest.mark.parametrize(
    ("directives", "count"),
    [
        ("#SBATCH -N 2\n#SBATCH --ntasks-per-node 8\n", 1),
        ("#SBATCH -N2\n#SBATCH -n 16\n", 1),
        ("#SBATCH --nodes=2 --ntasks-per-node=8 # both\n", 1),
        ("#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n", 0),
        ("#SBATCH --nodes=2\n", 0),
        ("##SBATCH --nodes=2\n##SBATCH --ntasks-per-node=8\n", 0),
    ],
)
def test_directives(directives: str, count: int) -> None:
    command = "srun torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint $H:29500 t.py\n"
    files = {"job.sh": f"#!/bin/bash\n{directives}{command}"}
    assert len(findings("scheduler_mismatch", lint=("job.sh",), files=files)) == count


@pytest.mark.parametrize("gres", ["--gres=gpu:4", "--gres=gpu:a100:4", "--gpus-per-node=4", "--gres=gpu:a100:4(S:0-1)"])
def test_gpus_of_the_job(gres: str) -> None:
    files = {"job.sh": f"#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH {gres}\ntorchrun --nproc_per_node 8 t.py\n"}
    (found,) = findings("scheduler_mismatch", lint=("job.sh",), files=files)
    assert "4 GPUs" in found.message


def test_several_tasks_of_a_plain_program_are_no_fault() -> None:
    files = {"job.sh": "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\nsrun python train.py\n"}
    assert not findings("scheduler_mismatch", lint=("job.sh",), files=files)


@pytest.mark.parametrize(
    ("value", "count"),
    [("eth0", 0), ("et", 0), ("=et", 1), ("=eth0", 0), ("^eth0", 0), ("ib0,eth0", 0), ("ib0,ib1", 1), ("eth0:1", 0)],
)
def test_interfaces_of_nccl(value: str, count: int) -> None:
    command = f"NCCL_SOCKET_IFNAME={value} torchrun --nproc_per_node 2 train.py"
    assert len(findings("interface_missing", command, facts={})) == count


def test_a_variable_is_named_once_for_many_launches() -> None:
    text = "export NCCL_SOCKET_IFNAME=ib0\ntorchrun --nproc_per_node 2 a.py\ntorchrun --nproc_per_node 2 b.py\n"
    assert len(findings("interface_missing", text, facts={})) == 1


def test_left_over_variables_under_a_scheduler_are_its_own() -> None:
    files = {"t.py": "from accelerate import Accelerator\nAccelerator()\n"}
    env = {"RANK": "0", "WORLD_SIZE": "4"}
    assert findings("stale_rank_variables", "python t.py", facts={"env": env}, files=files)
    for more in ({"SLURM_STEP_ID": "0"}, {"OMPI_COMM_WORLD_RANK": "1"}):
        assert not findings("stale_rank_variables", "python t.py", facts={"env": {**env, **more}}, files=files)
