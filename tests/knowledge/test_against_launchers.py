"""What we read without running anything is what the real parsers hold when they run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from mgpu_doctor.knowledge import PackageKnowledge, layout, static
from mgpu_doctor.model.facts import NO_FACTS, Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser, site_packages_of

pytestmark = pytest.mark.oracle

VERSIONS = {
    "old": {"accelerate": "1.7.0", "deepspeed": "0.16.9", "llamafactory": "0.9.3", "transformers": "4.52.4"},
    "new": {"accelerate": "1.15.0", "deepspeed": "0.19.8", "llamafactory": "0.9.5", "transformers": "5.6.0"},
}

DESCRIBE = """
import os
os.environ.pop("HF_HUB_OFFLINE", None)
def plain(value):
    value = getattr(value, "value", value)
    value = list(value) if isinstance(value, tuple) else value
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else {"object": repr(value)}
def describe(parser):
    return {
        "abbreviations": parser.allow_abbrev,
        "options": [
            {
                "dest": action.dest, "flags": list(action.option_strings), "nargs": action.nargs,
                "type": getattr(action.type, "__name__", None), "const": plain(action.const),
                "default": plain(action.default), "required": action.required, "action": type(action).__name__,
                "choices": None if action.choices is None else [plain(choice) for choice in action.choices],
            }
            for action in parser._actions
        ],
    }
"""

LAUNCHERS = (
    DESCRIBE
    + """
import argparse
from accelerate.commands.launch import launch_command_parser
from deepspeed.launcher import runner
from torch.distributed import launch, run
made = []
original = argparse.ArgumentParser.parse_args
def keep(self, args=None, namespace=None):
    made.append(self)
    return original(self, ["x.py"], namespace)
argparse.ArgumentParser.parse_args = keep
runner.parse_args([])
launch.parse_args([])
argparse.ArgumentParser.parse_args = original
result = {
    "accelerate": describe(launch_command_parser()), "deepspeed": describe(made[0]),
    "torchrun": describe(run.get_args_parser()), "torch.distributed.launch": describe(made[1]),
}
"""
)

FIELDS = (
    DESCRIBE
    + """
from llamafactory.hparams import parser
from transformers import HfArgumentParser, TrainingArguments
groups = {"train": parser._TRAIN_ARGS, "infer": parser._INFER_ARGS, "eval": parser._EVAL_ARGS}
groups["hf"] = [TrainingArguments]
result = {name: describe(HfArgumentParser(classes)) for name, classes in groups.items()}
"""
)


@lru_cache(maxsize=4)
def real(environment: str, snippet: str) -> dict[str, Any]:
    found: dict[str, Any] = run_parser(environment, snippet, None)
    return found


def knowledge_of(environment: str, source: str) -> PackageKnowledge:
    """From the installed files, or from the shipped tables alone."""
    if source == "tables":
        return PackageKnowledge(Facts(origin="tables", packages={**VERSIONS[environment], "torch": "2.13.0"}))
    return PackageKnowledge(NO_FACTS, (str(site_packages_of(environment)),))


BOTH = pytest.mark.parametrize("source", ["installed", "tables"])
EVERYWHERE = pytest.mark.parametrize(
    "environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS]
)


@EVERYWHERE
@BOTH
@pytest.mark.parametrize("launcher", sorted(layout.LAUNCHERS))
def test_options_are_those_of_the_launcher(environment: str, source: str, launcher: str) -> None:
    knowledge = knowledge_of(environment, source)
    theirs = real(environment, LAUNCHERS)[launcher]
    options = knowledge.options(launcher)
    assert not isinstance(options, Unknown)
    assert_same(options, theirs["options"])
    assert knowledge.allows_abbreviations(launcher) == theirs["abbreviations"]


@EVERYWHERE
@BOTH
@pytest.mark.parametrize(
    ("package", "group", "name"),
    [
        ("llamafactory", "train", "train"),
        ("llamafactory", "infer", "infer"),
        ("llamafactory", "eval", "eval"),
        ("transformers", "TrainingArguments", "hf"),
    ],
)
def test_fields_are_those_of_the_framework(environment: str, source: str, package: str, group: str, name: str) -> None:
    fields = knowledge_of(environment, source).fields(package, group)
    assert not isinstance(fields, Unknown)
    theirs = [option for option in real(environment, FIELDS)[name]["options"] if option["dest"] != "help"]
    assert_same(fields, theirs)


@EVERYWHERE
def test_a_changed_file_is_read_and_an_unchanged_one_taken_from_the_tables(environment: str) -> None:
    """The shortcut by digest gives what reading gives."""
    site = site_packages_of(environment)
    assert site is not None
    reading = layout.Reading((site,))
    quick = knowledge_of(environment, "installed")
    for launcher in layout.LAUNCHERS:
        options = quick.options(launcher)
        assert not isinstance(options, Unknown)
        assert sorted(map(repr, static.read_launcher(launcher, reading).options)) == sorted(map(repr, options)), (
            launcher
        )


def assert_same(ours: tuple[OptionSpec, ...], theirs: list[dict[str, Any]]) -> None:
    by_name = {(spec.flags or (spec.dest,)): spec for spec in ours}
    real_by_name = {(tuple(option["flags"]) or (option["dest"],)): option for option in theirs}
    assert set(by_name) == set(real_by_name)
    for name, option in real_by_name.items():
        spec = by_name[name]
        assert spec.dest == option["dest"], name
        assert spec.nargs == option["nargs"], name
        assert spec.const == option["const"], name
        if not isinstance(spec.default, Unknown):
            assert spec.default == option["default"], name
        if spec.choices is not None:
            assert list(spec.choices) == option["choices"], name
        if option["flags"]:
            # Python 3.11 calls a positional that takes the remainder required; it may be empty all the same.
            assert spec.required == option["required"], name
        if spec.type not in {"choice", None} and option["type"] not in {"<lambda>", None}:
            assert spec.type == option["type"], name
