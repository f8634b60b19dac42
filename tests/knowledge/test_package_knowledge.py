"""Which release the reasoning is about, and what is known of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.model.facts import NO_FACTS, Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec


def knowing(**packages: str) -> PackageKnowledge:
    return PackageKnowledge(Facts(origin="host.json", packages={k.replace("_", "-"): v for k, v in packages.items()}))


def flags(options: tuple[OptionSpec, ...] | Unknown) -> set[str]:
    assert not isinstance(options, Unknown), options.reason
    return {flag for spec in options for flag in spec.flags}


def known(texts: tuple[str, ...] | Unknown) -> tuple[str, ...]:
    assert not isinstance(texts, Unknown), texts.reason
    return texts


RUNNER = """
import argparse
def parse_args(args=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_gpus", type=int, default=-1)
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("user_script", type=str)
    parser.add_argument("user_args", nargs=argparse.REMAINDER)
    return parser.parse_args(args=args)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of packages with a deepspeed of our own making."""
    launcher = tmp_path / "deepspeed" / "launcher"
    launcher.mkdir(parents=True)
    (launcher / "runner.py").write_text(RUNNER, encoding="utf-8")
    (tmp_path / "deepspeed" / "__init__.py").touch()
    (launcher / "__init__.py").touch()
    metadata = tmp_path / "deepspeed-0.18.1.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("[console_scripts]\nds_ours = deepspeed.x:main\n", encoding="utf-8")
    return tmp_path


def test_the_facts_version_counts() -> None:
    release = knowing(accelerate="1.7.0").release("accelerate")
    assert (release.version, release.certain) == ("1.7.0", True)
    assert "host.json" in release.why


def test_without_any_facts_the_latest_known_release_is_assumed() -> None:
    release = PackageKnowledge(NO_FACTS).release("accelerate")
    assert (release.version, release.certain) == ("1.15.0", False)
    assert "no accelerate found" in release.why


def test_nothing_is_known_about_an_unheard_of_package() -> None:
    release = PackageKnowledge(NO_FACTS).release("unheard-of")
    assert (release.version, release.certain) == (None, False)


def test_installed_files_are_read(site: Path) -> None:
    knowledge = PackageKnowledge(NO_FACTS, (str(site),))
    assert flags(knowledge.options("deepspeed")) == {"-h", "--help", "--num_gpus", "--ours"}
    release = knowledge.release("deepspeed")
    assert (release.version, release.certain) == ("0.18.1", True)
    assert str(site) in release.why
    assert knowledge.console_scripts("deepspeed") == ("ds_ours",)
    assert knowledge.script_owner("ds_ours") == "deepspeed"


def test_an_editable_install_is_followed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("site")
    (site / "deepspeed-0.18.1.dist-info").rename(elsewhere / "deepspeed-0.18.1.dist-info")
    (elsewhere / "__editable__.deepspeed.pth").write_text(f"{site}\nimport os\n", encoding="utf-8")
    assert "--ours" in flags(PackageKnowledge(NO_FACTS, (str(elsewhere),)).options("deepspeed"))


ENDLESS = """
import argparse
X = X
def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--x", default=X)
"""


@pytest.mark.parametrize("text", ["def parse_args(:\n", "", "x = 1\n", "\x00", ENDLESS, "x = " + "-" * 100_000 + "1\n"])
def test_a_damaged_package_falls_back_to_the_tables_and_says_so(site: Path, text: str) -> None:
    (site / "deepspeed" / "launcher" / "runner.py").write_text(text, encoding="utf-8")
    knowledge = PackageKnowledge(NO_FACTS, (str(site),))
    assert "--include" in flags(knowledge.options("deepspeed"))
    assert "could not be read" in knowledge.release("deepspeed").why


def test_facts_of_another_release_than_the_installed_one_win(site: Path) -> None:
    knowledge = PackageKnowledge(Facts(origin="host.json", packages={"deepspeed": "0.16.9"}), (str(site),))
    assert "--ours" not in flags(knowledge.options("deepspeed"))


def test_a_missing_directory_is_no_error() -> None:
    knowledge = PackageKnowledge(NO_FACTS, ("/no/such/place",))
    assert knowledge.release("torch").certain is False


def test_the_nearest_tabled_release_is_named() -> None:
    knowledge = knowing(deepspeed="0.16.4")
    assert "--include" in flags(knowledge.options("deepspeed"))
    assert "nearest tabled release" in knowledge.release("deepspeed").why


def test_abbreviations() -> None:
    knowledge = knowing(accelerate="1.7.0", torch="2.6.0", deepspeed="0.16.9")
    assert [knowledge.allows_abbreviations(name) for name in ("accelerate", "torchrun", "deepspeed")] == [
        False,
        True,
        True,
    ]


def test_an_unknown_launcher_has_no_table() -> None:
    assert isinstance(PackageKnowledge(NO_FACTS).options("mpirun"), Unknown)


def test_the_module_and_the_script_share_a_table() -> None:
    knowledge = PackageKnowledge(NO_FACTS)
    assert knowledge.options("torch.distributed.run") == knowledge.options("torchrun")
    assert flags(knowledge.options("torch.distributed.launch")) - flags(knowledge.options("torchrun")) == {
        "--use-env",
        "--use_env",
    }


def test_arguments_of_llamafactory_hold_those_of_transformers() -> None:
    knowledge = knowing(llamafactory="0.9.3", transformers="4.52.4")
    train = flags(knowledge.fields("llamafactory", "train"))
    assert {"--flash_attn", "--per-device-train-batch-size", "--no_use_fast_tokenizer", "--ray_num_workers"} <= train
    assert "--gpus" not in train
    infer = flags(knowledge.fields("llamafactory", "infer"))
    assert "--infer_backend" in infer
    assert "--per_device_train_batch_size" not in infer
    assert isinstance(knowledge.fields("llamafactory", "no such parser"), Unknown)
    assert isinstance(knowledge.fields("unheard-of"), Unknown)


def test_an_assumed_transformers_is_one_that_llamafactory_allows() -> None:
    train = flags(knowing(llamafactory="0.9.3").fields("llamafactory", "train"))
    assert "--overwrite_output_dir" in train, "transformers 5 has dropped it, 4.52.4 has it"


def test_spellings_with_dashes_came_with_transformers_4_46() -> None:
    assert "--num-train-epochs" not in flags(knowing(transformers="4.44.2").fields("transformers", "TrainingArguments"))
    assert "--num-train-epochs" in flags(knowing(transformers="4.46.3").fields("transformers", "TrainingArguments"))


def test_subcommands() -> None:
    assert "eval" in known(knowing(llamafactory="0.9.3").subcommands("llamafactory"))
    later = knowing(llamafactory="0.9.5").subcommands("llamafactory")
    assert not isinstance(later, Unknown)
    assert "train" in later
    assert "eval" not in later
    assert "sft" in known(knowing(ms_swift="3.9.0").subcommands("ms-swift"))
    assert isinstance(PackageKnowledge(NO_FACTS).subcommands("torch"), Unknown)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("llamafactory.train", "package-without-main"),
        ("llamafactory.launcher", "module"),
        ("llamafactory.lanucher", "missing"),
        ("torch.distributed.run", "module"),
        ("accelerate.commands.launch", "module"),
        ("deepspeed.launcher.runner", "module"),
    ],
)
def test_kinds_of_modules(module: str, kind: str) -> None:
    knowledge = knowing(llamafactory="0.9.3", torch="2.6.0", accelerate="1.7.0", deepspeed="0.16.9")
    assert knowledge.module_kind(module) == kind


def test_releases_that_differ_leave_it_open() -> None:
    assert isinstance(PackageKnowledge(NO_FACTS).module_kind("llamafactory.v1.launcher"), Unknown)
    assert isinstance(PackageKnowledge(NO_FACTS).module_kind("own.package"), Unknown)
    assert isinstance(PackageKnowledge(NO_FACTS).module_kind("torch.utils.collect_env"), Unknown)


def test_modules_of_an_installed_package(site: Path) -> None:
    knowledge = PackageKnowledge(NO_FACTS, (str(site),))
    assert knowledge.module_kind("deepspeed.launcher") == "package-without-main"
    assert knowledge.module_kind("deepspeed.launcher.runner") == "module"
    assert knowledge.module_kind("deepspeed.launcher.gone") == "missing"
    (site / "deepspeed" / "__main__.py").touch()
    assert knowledge.module_kind("deepspeed") == "package"


@pytest.mark.parametrize(
    ("command", "owner"),
    [
        ("torchrun", "torch"),
        ("accelerate", "accelerate"),
        ("accelerate-launch", "accelerate"),
        ("deepspeed", "deepspeed"),
        ("llamafactory-cli", "llamafactory"),
        ("lmf", "llamafactory"),
        ("swift", "ms-swift"),
        ("unheard-of", None),
    ],
)
def test_owners_of_console_commands(command: str, owner: str | None) -> None:
    assert PackageKnowledge(NO_FACTS).script_owner(command) == owner


def test_readers_of_variables() -> None:
    old = knowing(transformers="4.52.4", huggingface_hub="0.34.4", torch="2.6.0")
    new = knowing(transformers="5.6.0", huggingface_hub="1.6.0", torch="2.6.0")
    assert "transformers 4.52.4" in known(old.variable_readers("TRANSFORMERS_CACHE"))
    assert new.variable_readers("TRANSFORMERS_CACHE") == ()
    assert any("huggingface" in reader for reader in known(new.variable_readers("TRANSFORMERS_OFFLINE")))
    assert new.variable_readers("TRANSFORMERS_NO_FLASH_ATTENTION") == ()
    assert new.variable_readers("PET_NNODES") == ("torch 2.6.0",)
    assert "nccl" in known(new.variable_readers("NCCL_P2P_DISABLE"))
    assert isinstance(new.variable_readers("MY_OWN"), Unknown)


def test_known_variables_are_names() -> None:
    known = PackageKnowledge(NO_FACTS).known_variables()
    assert {"HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "PET_NPROC_PER_NODE"} <= known
    assert not [name for name in known if not name.replace("_", "").isalnum()]


def test_making_it_costs_next_to_nothing() -> None:
    started = time.perf_counter()
    for _ in range(100):
        PackageKnowledge(NO_FACTS)
    assert time.perf_counter() - started < 0.1
