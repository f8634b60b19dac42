from __future__ import annotations

from dataclasses import replace

import pytest

from chain_stand_ins import command_of, context_of, given, one_process, words_of
from mgpu_doctor.launchers.chain import Plan
from mgpu_doctor.launchers.scheduler import directives, plan, wrapper_layer
from mgpu_doctor.model.command import Wrapper
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.source import Source, Span


def planned(text: str, name: str | None = None, script: str = "") -> Plan:
    wrapper = Wrapper(name or text.split(" ", maxsplit=1)[0], words_of(text))
    layer = wrapper_layer(wrapper)
    assert layer is not None
    command = command_of("python train.py")
    if script:
        source = Source("job.sh", script + "python train.py\n", "shell")
        command = replace(command, source=source, span=Span(len(script), len(script) + 15))
    return plan(layer, one_process(), context_of(command))


@pytest.mark.parametrize(
    ("text", "script", "per_node", "nodes"),
    [
        ("srun -N 2 --ntasks-per-node=4", "", 4, 2),
        ("srun -n 8 --nodes=2", "", 4, 2),
        ("srun --ntasks=3", "", 3, 1),
        ("srun -n4", "", 4, 1),
        ("srun --nodes=2", "", 1, 2),
        ("srun", "#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n", 1, 4),
        ("srun", "#SBATCH -N 2 -n 16 # sixteen\n", 8, 2),
        ("srun --ntasks-per-node=8", "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n", 8, 2),
        ("mpirun -np 4", "", 4, 1),
        ("mpirun -n 16 -ppn 4", "", 4, 4),
    ],
)
def test_counts(text: str, script: str, per_node: int, nodes: int) -> None:
    after = planned(text, script=script)
    assert (after.processes_per_node.known, after.nodes.known) == (per_node, nodes)


@pytest.mark.parametrize("text", ["srun", "srun -n $TASKS", "mpirun --hostfile hosts -np 16", "mpirun"])
def test_says_what_it_cannot_know(text: str) -> None:
    assert isinstance(planned(text).processes_per_node.value, Unknown)


def test_directives_of_an_older_block_do_not_count() -> None:
    text = "```\n#SBATCH --nodes=4\n```\n\n```\n"
    command = replace(
        command_of("srun a"), source=Source("x.md", text + "srun a\n", "markdown"), span=Span(len(text), len(text) + 6)
    )
    assert directives(command) == {}


def test_directives_have_their_place() -> None:
    text = "  #SBATCH --gres=gpu:4\n"
    command = replace(
        command_of("srun a"), source=Source("x.sh", text + "srun a\n", "shell"), span=Span(len(text), len(text) + 6)
    )
    value, span = directives(command)["gres"]
    assert value == "gpu:4"
    assert command.source.slice(span) == "#SBATCH --gres=gpu:4"


@pytest.mark.parametrize("name", ["nohup", "time", "sudo", "uv run", "numactl", "env"])
def test_plain_wrappers_are_no_layers(name: str) -> None:
    assert wrapper_layer(Wrapper(name, words_of(name))) is None


def test_layer_names_are_canonical() -> None:
    layer = wrapper_layer(Wrapper("mpiexec", words_of("mpiexec -n 2")))
    assert layer is not None
    assert layer.launcher == "mpirun"
    shell = wrapper_layer(Wrapper("bash -c", words_of("bash -c")))
    assert shell is not None
    assert ([w.shown for w in shell.command_words], shell.argument_words) == (["bash", "-c"], ())
    ray = wrapper_layer(Wrapper("ray job submit", words_of("ray job submit --no-wait --")))
    assert ray is not None
    assert [w.shown for w in ray.argument_words] == ["--no-wait", "--"]


def test_container_renumbers_its_devices() -> None:
    after = planned("docker run --gpus device=4,5 image", "docker run")
    visible = after.visible.known
    assert visible is not None
    assert (visible.entries, visible.physical) == (("0", "1"), (4, 5))


def test_container_with_all_devices_changes_nothing() -> None:
    assert planned("docker run --gpus all image", "docker run").visible == one_process().visible


def test_options_of_a_container() -> None:
    layer = wrapper_layer(Wrapper("docker run", words_of("docker run --shm-size=16g --gpus all image")))
    assert layer is not None
    assert given(layer) == {"shm_size": "16g", "gpus": "all"}


def test_a_list_inside_a_container_picks_from_its_devices() -> None:
    layer = wrapper_layer(Wrapper("docker run", words_of("docker run --gpus device=4,5,6 image")))
    assert layer is not None
    after = plan(layer, one_process(), context_of("python train.py", environment={"CUDA_VISIBLE_DEVICES": "2,0"}))
    visible = after.visible.known
    assert visible is not None
    assert (visible.entries, visible.physical) == (("2", "0"), (6, 4))
