"""An observation as JSON and back, and what a broken file is answered with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given

from mgpu_doctor.collect.observation_file import load_observation, observation_document, observation_from
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation
from observations import any_observation, healthy


@given(any_observation)
def test_what_is_written_is_read_back(seen: Observation) -> None:
    text = json.dumps(observation_document(seen), allow_nan=False)
    again = observation_from(json.loads(text), "probe.json")
    # NaN equals nothing, itself included; as text it does.
    assert repr(again) == repr(seen)


def test_absent_keys_are_unknown_and_null_is_an_answer_where_there_is_one() -> None:
    seen = observation_from({"ranks": [{"rank": 0, "uuid": None, "pid": None, "visible": None}]}, "x")
    (rank,) = seen.ranks
    assert rank.uuid is None
    assert rank.visible is None
    assert isinstance(rank.pid, Unknown)
    assert isinstance(seen.promised_processes, Unknown)
    assert seen.on_gpu


def test_a_process_without_a_rank_was_told_none() -> None:
    (rank,) = observation_from({"ranks": [{}]}, "x").ranks
    assert isinstance(rank.rank, Unknown)


def test_numbers_that_json_lacks_are_kept() -> None:
    seen = observation_from({"sum_expected": 3, "sum_measured": ["NaN", "-Infinity"]}, "x")
    assert isinstance(seen.sum_measured, tuple)
    assert math.isnan(seen.sum_measured[0])
    assert seen.sum_measured[1] == -math.inf


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "a JSON object, not a list"),
        ({"schema": 2}, "has schema 2"),
        ({"kind": "dream"}, "kind must be one of probe, watch, not 'dream'"),
        ({"ranks": {}}, "ranks must be a list, not an object"),
        ({"ranks": [3]}, "ranks[0] must be an object, not a number"),
        ({"ranks": [{"rank": True}]}, "ranks[0].rank must be a whole number, not true or false"),
        ({"ranks": [{"rnak": 1}]}, "ranks[0].rnak is no key"),
        ({"ranks": [{"solo_ms": "fast"}]}, "ranks[0].solo_ms must be a number, not text"),
        ({"stages": [{"name": "group"}]}, "stages[0].state is missing"),
        ({"bad_pairs": [[1]]}, "bad_pairs[0] must be a pair"),
        ({"versions": []}, "versions must be an object"),
        ({"unknown": {"seconds": 3}}, "unknown.seconds must be text"),
        ({"seconds": 10**400}, "seconds is too large a number"),
    ],
)
def test_a_wrong_document_is_refused_with_the_place(document: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        observation_from(document, "probe.json")
    assert caught.value.message.startswith("probe.json: ")
    assert says in caught.value.message


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_observation(str(path))
    with pytest.raises(InputError, match="no regular file"):
        load_observation(str(tmp_path))
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not JSON"):
            load_observation(str(path))
    path.write_text(json.dumps(observation_document(healthy(2))))
    assert load_observation(str(path)) == healthy(2)
