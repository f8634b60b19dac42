"""The shipped data: complete, small, and in the form that the loader expects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.knowledge import layout, tables
from mgpu_doctor.knowledge.declared import COMPUTED
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.version import version_key

SMALL_ENOUGH = 400_000
"""Bytes of all shipped data together."""


def test_the_data_stays_small() -> None:
    assert sum(path.stat().st_size for path in Path(tables.DATA).glob("*.json")) < SMALL_ENOUGH


@pytest.mark.parametrize(
    ("package", "oldest", "newest"),
    [
        ("accelerate", "0.20.3", "1.15.0"),
        ("deepspeed", "0.9.5", "0.19.8"),
        ("torch", "1.13.1", "2.15.0"),
        ("llamafactory", "0.7.1", "0.9.5"),
        ("transformers", "4.40.2", "5.23.0"),
    ],
)
def test_releases_are_sorted_and_reach_as_far_as_promised(package: str, oldest: str, newest: str) -> None:
    known = tables.releases(package)
    assert (known[0], known[-1]) == (oldest, newest)
    assert list(known) == sorted(known, key=version_key)


@pytest.mark.parametrize("launcher", sorted(layout.LAUNCHERS))
def test_every_release_of_every_launcher_has_its_target_last(launcher: str) -> None:
    package = layout.LAUNCHERS[launcher][0]
    for place, release in enumerate(tables.releases(package)):
        found = tables.options(package, launcher, place)
        assert found is not None, release
        positionals = [option for option in found if not option.flags]
        assert [option.nargs for option in positionals] == [None, "..."], release
        flags = [flag for option in found for flag in option.flags]
        assert len(flags) == len(set(flags)), release


def test_provenance_names_the_files() -> None:
    for package in ("accelerate", "deepspeed", "torch", "llamafactory", "transformers"):
        for release in tables.releases(package):
            files = tables.provenance(package, release)
            assert files, f"{package} {release}"
            assert all(len(digest) == 16 for digest in files.values())


def test_known_differences_between_releases() -> None:
    def flags(launcher: str, version: str) -> set[str]:
        package = layout.LAUNCHERS[launcher][0]
        chosen = tables.choose(package, version)
        assert chosen is not None
        return {flag for spec in tables.options(package, launcher, chosen.place) or () for flag in spec.flags}

    assert "--num-processes" not in flags("accelerate", "0.20.3")
    assert "--num-processes" in flags("accelerate", "1.7.0")
    assert "--ipex" in flags("accelerate", "1.7.0")
    assert "--ipex" not in flags("accelerate", "1.15.0")
    assert "--nproc-per-node" in flags("torchrun", "2.0.1")
    assert "-m" not in flags("deepspeed", "0.16.9") | flags("deepspeed", "0.19.8")
    assert "--module" in flags("deepspeed", "0.9.5")


@pytest.mark.parametrize(
    ("asked", "chosen", "exact"),
    [
        ("1.7.0", "1.7.0", True),
        ("1.8.0", "1.8.1", False),
        ("1.5.1", "1.5.2", False),
        ("1.16.2", "1.15.0", False),
        ("0.1", "0.20.3", False),
        ("1.7.0+local", "1.7.0", True),
        ("1.15.0.dev0", "1.15.0", False),
        ("nonsense", "0.20.3", False),
    ],
)
def test_the_nearest_release(asked: str, chosen: str, exact: bool) -> None:
    found = tables.choose("accelerate", asked)
    assert found is not None
    assert (found.version, found.exact) == (chosen, exact)


def test_a_later_patch_is_no_better_than_an_earlier_one() -> None:
    found = tables.choose("llamafactory", "0.9.3")
    assert found is not None
    assert found.version == "0.9.3"


def test_versions_sort_as_releases_do() -> None:
    ordered = ["0.9.5", "1.0.0.dev1", "1.0.0rc1", "1.0.0", "1.0.1", "1.9.0", "1.10.0"]
    assert sorted(sorted(ordered), key=version_key) == ordered
    assert version_key("1.0") == version_key("1.0.0") == version_key("v1.0.0+cu124")


def test_a_package_without_data_has_no_releases() -> None:
    assert tables.releases("unheard-of") == ()
    assert tables.choose("unheard-of", "1.0") is None


@given(st.sets(st.integers(0, 60), min_size=1))
def test_runs_hold_exactly_their_indices(indices: set[int]) -> None:
    text = tables.runs(indices)
    assert {index for index in range(62) if tables.contains(text, index)} == indices


LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6), min_size=1, max_size=5)


@given(LISTS)
def test_merging_loses_and_invents_nothing(per_release: list[list[str]]) -> None:
    merged = tables.merge([[{"dest": name} for name in release] for release in per_release])
    texts = tables.merge(per_release)
    for index, release in enumerate(per_release):
        if isinstance(merged, list):
            held = [record["dest"] for run, record in merged if tables.contains(run, index)]  # type: ignore[index, arg-type]
            assert sorted(held) == sorted(release)
        else:
            assert not any(per_release)
        assert isinstance(texts, dict)
        lines = [name for run, names in texts.items() if tables.contains(run, index) for name in names.split("\n")]
        assert sorted(lines) == sorted(release)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(COMPUTED)


@given(
    st.builds(
        OptionSpec,
        dest=st.text("abc_", min_size=1),
        flags=st.lists(st.text("-ab"), max_size=2).map(tuple),
        action=st.sampled_from(["store", "store_true", "env"]),
        nargs=st.none() | st.sampled_from(["?", "+", 0, 2]),
        type=st.none() | st.just("int"),
        choices=st.none() | st.lists(st.text(max_size=2), max_size=3).map(tuple),
        default=VALUES,
        required=st.booleans(),
        const=VALUES,
    )
)
def test_a_record_keeps_everything(spec: OptionSpec) -> None:
    assert tables.decode(json.loads(json.dumps(tables.encode(spec)))) == spec
