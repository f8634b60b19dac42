"""What the probe starts in the place of a command: its own words, with our worker as the program."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from launching import HOST, launch, with_packages
from mgpu_doctor.errors import InputError, UsageError
from mgpu_doctor.model.command import Wrapper
from mgpu_doctor.model.facts import Facts, Gpu, PythonInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import replace
from mgpu_doctor.probe import ProbePlan, probe
from mgpu_doctor.probe.start import Start, launch_start, plain_start, visible_count

W = "/t/worker.py"
PYTHON = "/opt/env/bin/python"


def started(text: str, directory: Path | None = None, wrapper: str | None = None) -> Start:
    return launch_start(launch(text, directory=directory, wrapper=wrapper), PYTHON, "/", W)


def words(text: str, directory: Path | None = None, wrapper: str | None = None) -> str:
    return " ".join(started(text, directory, wrapper).argv)


KEPT = """\
torchrun --nproc_per_node 2 train.py --lr 1
torchrun --nproc_per_node 2 @
torchrun --nproc_per_node=2 -m pkg.train a.yaml
torchrun --nproc_per_node=2 @
torchrun --standalone --module --nproc-per-node 2 pkg.train
torchrun --standalone --nproc-per-node 2 @
torchrun --no-python --nproc_per_node 2 ./run.bin x
torchrun --nproc_per_node 2 @
torchrun --no-python --nproc_per_node 2 python -u t.py
torchrun --no-python --nproc_per_node 2 python -u @
torchrun --nproc_per_node 2 -- train.py
torchrun --nproc_per_node 2 @
python -m torch.distributed.run --nproc_per_node 2 t.py
python -m torch.distributed.run --nproc_per_node 2 @
python3 -u -m torch.distributed.launch --use_env t.py
python3 -u -m torch.distributed.launch --use_env @
accelerate launch --num_processes 4 -m pkg.train x
accelerate launch --num_processes 4 @
accelerate launch -qm pkg.train x
accelerate launch -q @
accelerate launch --multi_gpu --num_processes 2 --module pkg.train
accelerate launch --multi_gpu --num_processes 2 @
accelerate-launch --num_processes 4 t.py
accelerate-launch --num_processes 4 @
deepspeed --num_gpus 2 --module pkg.train --x
deepspeed --num_gpus 2 @
deepspeed --num_gpus 2 --no_python ./bin x
deepspeed --num_gpus 2 @
deepspeed --num_gpus 4 -m llamafactory.launcher --stage sft
deepspeed --num_gpus 4 -m @
python train.py --x
python @
python -u train.py --x
python -u @
python3 -um pkg.train --x
python3 -u @
python -m pkg.train --x
python @
llamafactory-cli chat x.yaml
/opt/env/bin/python @
torchrun --nproc_per_node 2 -m llamafactory.cli chat x.yaml
torchrun --nproc_per_node 2 @
torchrun --nproc_per_node 2 -m torch.distributed.run --nproc_per_node 3 t.py
torchrun --nproc_per_node 2 -m torch.distributed.run --nproc_per_node 3 @
"""
"""Commands, and below each what is started instead, with ``@`` for our worker.

deepspeed has no ``-m``: what it refuses is left for it to refuse.
"""


@pytest.mark.parametrize(("given", "expected"), [*zip(*[iter(KEPT.splitlines())] * 2, strict=True)])
def test_the_commands_own_words_are_kept_and_the_program_is_replaced(given: str, expected: str) -> None:
    assert words(given) == expected.replace("@", W)


def test_llamafactory_runs_the_torchrun_that_it_would_start() -> None:
    argv = words("FORCE_TORCHRUN=1 NPROC_PER_NODE=2 MASTER_PORT=29511 llamafactory-cli train a.yaml")
    assert (
        argv == f"torchrun --nnodes 1 --nproc_per_node 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29511 {W}"
    )


@pytest.mark.parametrize(
    ("before", "version", "tuned"),
    [("", "0.9.3", True), ("OPTIM_TORCH=0 ", "0.9.3", False), ("", "0.9.2", False)],
)
def test_llamafactory_sets_variables_of_its_own(before: str, version: str, tuned: bool) -> None:
    text = f"{before}FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train a.yaml"
    environment = launch_start(launch(text, with_packages(llamafactory=version)), PYTHON, "/", W).environment
    assert (environment.get("TORCH_NCCL_AVOID_RECORD_STREAMS") == "1") is tuned
    assert (environment.get("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True") is tuned


def test_llamafactory_looks_for_a_free_port_where_none_is_named() -> None:
    argv = words("FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train a.yaml")
    match = re.search(r"--master_port (\d+) ", argv)
    assert match is not None
    assert 1024 <= int(match.group(1)) <= 65535


def test_the_commands_variables_reach_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SETTING", "kept")
    start = started("CUDA_VISIBLE_DEVICES=2,3 NCCL_P2P_DISABLE=1 torchrun --nproc_per_node 2 t.py")
    assert start.environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert start.environment["NCCL_P2P_DISABLE"] == "1"
    assert start.environment["SOME_SETTING"] == "kept"


def test_a_value_that_only_the_shell_knows_is_taken_from_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW_MANY", "3")
    assert words("torchrun --nproc_per_node $HOW_MANY t.py") == f"torchrun --nproc_per_node 3 {W}"


def test_a_value_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOW_MANY", raising=False)
    with pytest.raises(InputError, match=r"\$HOW_MANY.*not known"):
        words("torchrun --nproc_per_node $HOW_MANY t.py")


def test_several_machines_are_reduced_to_this_one() -> None:
    start = started(
        "torchrun --nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr 10.0.0.1 --master_port 29400 t.py"
    )
    assert " ".join(start.argv) == (
        f"torchrun --nproc_per_node 4 --master_port 29400 --nnodes 1 --node_rank 0 --master_addr 127.0.0.1 {W}"
    )
    assert start.promised == 4
    assert any("2 machines" in note for note in start.notes)


def test_a_rendezvous_of_several_machines_is_moved_here() -> None:
    argv = words(
        "torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=head:29500 --rdzv_id 7 t.py"
    )
    assert argv == (
        "torchrun --nproc_per_node=8 --rdzv_id 7 --nnodes 1 --node_rank 0"
        f" --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:29500 {W}"
    )


def test_accelerate_on_several_machines_starts_this_machines_share() -> None:
    start = started(
        "accelerate launch --multi_gpu --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1"
        " --num_processes 16 t.py"
    )
    assert start.argv[-7:] == ("--num_machines", "1", "--machine_rank", "0", "--num_processes", "8", W)
    assert start.promised == 8


def test_deepspeed_on_several_machines_forgets_its_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=4\nb slots=4\n")
    start = started("deepspeed --hostfile hosts --launcher pdsh --master_port 29501 t.py", tmp_path)
    assert " ".join(start.argv) == f"deepspeed --master_port 29501 --hostfile /t/no-hostfile --num_gpus 4 {W}"


def test_the_promise_is_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "no.yaml").write_text("distributed_type: 'NO'\nnum_processes: 1\n")
    assert started("accelerate launch --config_file no.yaml --num_processes 4 t.py", tmp_path).promised == 4
    (tmp_path / "eight.yaml").write_text("distributed_type: 'NO'\nnum_processes: 8\n")
    assert started("accelerate launch --config_file eight.yaml t.py", tmp_path).promised == 8
    assert started("torchrun --nproc_per_node 3 t.py").promised == 3
    assert started("torchrun --nproc_per_node 2 -m torch.distributed.run --nproc_per_node 3 t.py").promised == 6
    assert started("python t.py").promised == 1


def test_the_devices_promised_are_those_of_the_ranks() -> None:
    uuids = started("CUDA_VISIBLE_DEVICES=4,5 torchrun --nproc_per_node 2 t.py").promised_uuids
    assert uuids == ("GPU-00000004-aaaa", "GPU-00000005-aaaa")


@pytest.mark.parametrize("wrapper", ["nohup", "time", "timeout 60"])
def test_wrappers_that_measure_nothing_are_left_out(wrapper: str) -> None:
    assert words("torchrun --nproc_per_node 2 t.py", wrapper=wrapper) == f"torchrun --nproc_per_node 2 {W}"


def test_a_wrapper_that_binds_processors_is_kept() -> None:
    argv = words("torchrun --nproc_per_node 2 t.py", wrapper="numactl --cpunodebind 0")
    assert argv == f"numactl --cpunodebind 0 torchrun --nproc_per_node 2 {W}"


def test_a_profiler_is_left_out_and_said() -> None:
    found = launch("torchrun --nproc_per_node 2 t.py", wrapper="nsys profile -o x")
    command = replace(found.command, wrappers=(Wrapper("nsys profile", found.command.wrappers[0].words),))
    start = launch_start(replace(found, command=command), PYTHON, "/", W)
    assert start.argv[0] == "torchrun"
    assert any("nsys profile" in note for note in start.notes)


def test_srun_is_left_out_in_front_of_a_launcher_and_its_promise_with_it() -> None:
    start = started("torchrun --nproc_per_node 2 t.py", wrapper="srun --nodes 1 --ntasks 1")
    assert start.argv[0] == "torchrun"
    assert any("srun" in note for note in start.notes)
    assert isinstance(start.promised, Unknown)


def test_srun_that_makes_the_ranks_itself_is_refused() -> None:
    with pytest.raises(InputError, match="srun itself starts"):
        words("python t.py", wrapper="srun --ntasks 4")


@pytest.mark.parametrize("wrapper", ["ssh host", "docker run image"])
def test_another_place_is_refused_with_the_way_there(wrapper: str) -> None:
    found = launch("torchrun --nproc_per_node 2 t.py", wrapper=wrapper)
    name = " ".join(wrapper.split()[: 2 if "docker" in wrapper else 1])
    command = replace(found.command, wrappers=(Wrapper(name, found.command.wrappers[0].words),))
    with pytest.raises(InputError, match="where the probe cannot go") as caught:
        launch_start(replace(found, command=command), PYTHON, "/", W)
    assert "mgpu-doctor probe" in str(caught.value.hint)


def test_a_shell_script_has_no_program_to_replace() -> None:
    with pytest.raises(InputError, match="shell script"):
        words("CUDA_VISIBLE_DEVICES=0 bash train.sh")


def test_torchrun_around_a_command_that_starts_torchrun_is_refused() -> None:
    with pytest.raises(InputError, match="starts torchrun itself"):
        words("FORCE_TORCHRUN=1 torchrun --nproc_per_node 2 -m llamafactory.cli train a.yaml")


def test_nothing_is_promised_where_a_word_hides_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH", "/env/bin/torchrun")
    start = started("python $LAUNCH --nproc_per_node 2 t.py")
    assert " ".join(start.argv) == f"python /env/bin/torchrun --nproc_per_node 2 {W}"
    assert isinstance(start.promised, Unknown)


def test_a_number_that_hangs_on_unknown_gpus_is_refused() -> None:
    found = launch("FORCE_TORCHRUN=1 llamafactory-cli train a.yaml", replace(HOST, gpus=Unknown("not looked")))
    with pytest.raises(InputError, match="one process for each visible GPU") as caught:
        launch_start(found, PYTHON, "/", W)
    assert caught.value.hint == "set NPROC_PER_NODE"


def test_one_process_needs_an_interpreter() -> None:
    with pytest.raises(InputError, match="which interpreter"):
        launch_start(launch("llamafactory-cli chat x.yaml"), None, "/", W)


def test_a_probe_without_a_command_starts_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PET_NNODES", "2")
    start = plain_start(HOST, None, PYTHON, W, cpu=False)
    assert start.argv[:3] == (PYTHON, "-m", "torch.distributed.run")
    assert start.argv[start.argv.index("--nproc_per_node") + 1] == "gpu"
    assert start.promised == 8
    assert not {"RANK", "PET_NNODES"} & set(start.environment)
    assert plain_start(HOST, 3, PYTHON, W, cpu=False).promised == 3
    assert plain_start(HOST, None, PYTHON, W, cpu=True).promised == 2


@pytest.mark.parametrize(
    ("text", "count"), [("0,1", 2), ("", 0), ("0,9,1", 1), ("1,1", 0), ("GPU-0000", 1), ("-1", 0), ("0, 1", 2)]
)
def test_the_visible_list_is_counted_as_cuda_does(text: str, count: int) -> None:
    assert visible_count(HOST, {"CUDA_VISIBLE_DEVICES": text}) == count


def test_a_probe_without_an_interpreter_is_refused() -> None:
    with pytest.raises(InputError, match="no Python interpreter"):
        plain_start(Facts(), None, None, W, cpu=True)


def test_the_interpreter_of_the_facts_is_used() -> None:
    facts = Facts(gpus=(Gpu(0),), python=PythonInfo(executable=PYTHON))
    assert plain_start(facts, None, None, W, cpu=False).argv[0] == PYTHON


def test_a_number_of_processes_besides_a_command_is_refused() -> None:
    with pytest.raises(UsageError, match="says itself"):
        probe(ProbePlan(launch("torchrun t.py"), HOST, processes=2, python=sys.executable))
    with pytest.raises(UsageError, match="between 1 and 64"):
        probe(ProbePlan(None, HOST, processes=0, python=sys.executable))


def test_a_command_runs_in_its_own_directory_and_a_plain_probe_in_none_of_the_users() -> None:
    assert started("torchrun t.py").directory == "/"
    assert plain_start(HOST, 1, PYTHON, W, cpu=True).directory == os.path.dirname(W)
