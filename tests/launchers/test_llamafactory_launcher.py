from __future__ import annotations

import pytest

from chain_stand_ins import context_of, given, one_process, words_of
from mgpu_doctor.launchers.chain import Peeled
from mgpu_doctor.launchers.llamafactory import implied, peel, plan, release_at_least
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Layer


def peeled(text: str, form: str = "command", version: str | None = "0.9.3") -> Peeled | None:
    versions = {"llamafactory": version} if version else {}
    return peel(words_of(text), form, context_of(text, versions=versions))


def torchrun_of(
    text: str,
    *,
    version: str = "0.9.3",
    visible: int | None = None,
    gpus: int | None = None,
    environment: dict[str, str] | None = None,
) -> Layer | Unknown | None:
    context = context_of(text, environment=environment, versions={"llamafactory": version}, gpus=gpus)
    found = peel(context.command.words, "command", context)
    assert found is not None
    return implied(found.layer, one_process(visible), context)


@pytest.mark.parametrize("name", ["llamafactory-cli", "lmf", "/opt/env/bin/llamafactory-cli"])
def test_recognises_its_commands(name: str) -> None:
    found = peeled(f"{name} train sft.yaml")
    assert found is not None
    assert found.layer.launcher == "llamafactory-cli"
    assert not found.layer.argument_words
    assert [word.value for word in found.rest] == ["train", "sft.yaml"]
    assert given(found.layer) == {"subcommand": "train"}


def test_recognises_the_module_and_the_path_as_a_script() -> None:
    assert peeled("llamafactory.cli train x.yaml", "module") is not None
    assert peeled("/opt/bin/llamafactory-cli train x.yaml", "script") is not None


@pytest.mark.parametrize(
    ("text", "form"),
    [("llamafactory-cli train", "script"), ("llamafactory.launcher x.yaml", "module"), ("llama-cli train", "command")],
)
def test_leaves_other_things_alone(text: str, form: str) -> None:
    assert peeled(text, form) is None


def test_nothing_behind_the_command_starts_nothing() -> None:
    found = peeled("llamafactory-cli")
    assert found is not None
    assert found.form == "none"


def test_train_on_several_devices_starts_torchrun() -> None:
    layer = torchrun_of("llamafactory-cli train sft.yaml", visible=4)
    assert isinstance(layer, Layer)
    assert layer.implied
    assert layer.launcher == "torchrun"
    assert given(layer) == {
        "nnodes": "1",
        "nproc_per_node": "4",
        "node_rank": "0",
        "master_addr": "127.0.0.1",
        "master_port": "0",
    }


def test_the_machine_counts_when_no_list_restricts_it() -> None:
    layer = torchrun_of("llamafactory-cli train sft.yaml", gpus=8)
    assert isinstance(layer, Layer)
    assert given(layer)["nproc_per_node"] == "8"


@pytest.mark.parametrize("visible", [0, 1])
def test_train_on_one_device_starts_none(visible: int) -> None:
    assert torchrun_of("llamafactory-cli train sft.yaml", visible=visible) is None


@pytest.mark.parametrize("text", ["llamafactory-cli chat c.yaml", "llamafactory-cli export e.yaml", "lmf api a.yaml"])
def test_other_subcommands_start_none(text: str) -> None:
    assert torchrun_of(text, visible=4, environment={"FORCE_TORCHRUN": "1"}) is None


def test_unknown_devices_make_it_unknown() -> None:
    context = context_of("llamafactory-cli train sft.yaml", versions={"llamafactory": "0.9.3"})
    found = peel(context.command.words, "command", context)
    assert found is not None
    before = one_process()
    assert isinstance(implied(found.layer, before, context), Unknown)
    assert isinstance(plan(found.layer, before, context).processes_per_node.value, Unknown)


@pytest.mark.parametrize(
    ("version", "value", "starts"),
    [("0.9.3", "1", True), ("0.9.3", "y", True), ("0.9.1", "y", False), ("0.9.3", "0", False), ("0.7.1", "1", False)],
)
def test_force_torchrun_by_release(version: str, value: str, starts: bool) -> None:
    layer = torchrun_of(
        "llamafactory-cli train s.yaml", version=version, visible=1, environment={"FORCE_TORCHRUN": value}
    )
    assert isinstance(layer, Layer) is starts


@pytest.mark.parametrize(
    ("version", "name", "starts"),
    [("0.9.1", "USE_RAY", True), ("0.9.2", "USE_RAY", False), ("0.9.3", "USE_KT", True), ("0.9.4", "USE_KT", False)],
)
def test_ray_and_ktransformers_by_release(version: str, name: str, starts: bool) -> None:
    layer = torchrun_of("llamafactory-cli train s.yaml", version=version, visible=4, environment={name: "1"})
    assert isinstance(layer, Layer) is starts


@pytest.mark.parametrize(("version", "expected"), [("0.8.3", "1"), ("0.9.0", "1"), ("0.9.1", "0"), ("0.9.5", "0")])
def test_rank_is_the_node_rank_only_in_old_releases(version: str, expected: str) -> None:
    environment = {"FORCE_TORCHRUN": "1", "NNODES": "2", "RANK": "1"}
    layer = torchrun_of("llamafactory-cli train s.yaml", version=version, visible=4, environment=environment)
    assert isinstance(layer, Layer)
    assert given(layer)["node_rank"] == expected


def test_variables_reach_torchrun_with_their_places() -> None:
    environment = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29512",
        "NPROC_PER_NODE": "3",
    }
    context = context_of("llamafactory-cli train s.yaml", environment=environment, versions={"llamafactory": "0.9.3"})
    found = peel(context.command.words, "command", context)
    assert found is not None
    layer = implied(found.layer, one_process(4), context)
    assert isinstance(layer, Layer)
    assert given(layer) == {
        "nnodes": "2",
        "node_rank": "1",
        "master_addr": "10.0.0.1",
        "master_port": "29512",
        "nproc_per_node": "3",
    }
    port = layer.option("master_port")
    assert port is not None
    assert context.command.source.slice(port.span) == "MASTER_PORT=29512"


def test_elastic_since_0_9_3() -> None:
    environment = {
        "RDZV_ID": "7",
        "MIN_NNODES": "1",
        "MAX_NNODES": "3",
        "MASTER_PORT": "29600",
        "MASTER_ADDR": "10.0.0.1",
    }
    layer = torchrun_of("llamafactory-cli train s.yaml", visible=2, environment=environment)
    assert isinstance(layer, Layer)
    options = given(layer)
    assert (options["nnodes"], options["rdzv_endpoint"], options["rdzv_backend"]) == ("1:3", "10.0.0.1:29600", "c10d")
    older = torchrun_of("llamafactory-cli train s.yaml", version="0.9.2", visible=2, environment=environment)
    assert isinstance(older, Layer)
    assert "rdzv_id" not in given(older)


def test_versions_compare_by_number() -> None:
    assert release_at_least("0.10.0", 0, 9, 3)
    assert not release_at_least("0.9.2.dev0", 0, 9, 3)
    assert release_at_least(None, 0, 9, 3)
