from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.model.program import ConfigFile
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.config import read_config, unread_config


def read(text: str, name: str = "c.yaml") -> ConfigFile:
    return read_config(Source(name, text, "config"), "accelerate")


def shown(config: ConfigFile, *path: str) -> str:
    place = config.locate(*path)
    assert place is not None
    return place.source.slice(place.span)


def test_yaml_values_with_their_places() -> None:
    config = read("# 配置\r\nnum_processes: 4\r\ndeepspeed_config:\r\n  zero_stage: 3\r\n  list: [a, {b: c}]\r\n")
    assert config.problem is None
    assert config.get("num_processes") == 4
    assert config.get("deepspeed_config", "zero_stage") == 3
    assert config.get("deepspeed_config", "list", "1", "b") == "c"
    assert config.get("absent") is None
    assert shown(config, "num_processes") == "num_processes: 4"
    assert shown(config, "deepspeed_config", "zero_stage") == "zero_stage: 3"


def test_yaml_1_1_reads_as_its_consumers_do() -> None:
    config = read("distributed_type: NO\nlr: 1e-4\nother: 1.0e-4\nport: 0o10\nempty:\nquoted: 'NO'\n")
    assert config.get("distributed_type") is False
    assert config.get("lr") == "1e-4"
    assert config.get("other") == 1.0e-4
    assert config.get("quoted") == "NO"
    assert config.has("empty")
    assert config.get("empty") is None


def test_last_of_two_equal_keys_counts() -> None:
    assert read("a: 1\na: 2\n").get("a") == 2
    config = read('{"a": 1, "a": 2}', "c.json")
    assert config.get("a") == 2
    assert shown(config, "a") == '"a": 2'


def test_merged_keys_count() -> None:
    config = read("base: &b {x: 1}\nc:\n  <<: *b\n  y: 2\n")
    assert config.get("c", "x") == 1
    assert config.get("c") == {"x": 1, "y": 2}


def test_a_byte_order_mark_moves_no_place() -> None:
    config = read("\ufeffa: 1\n")
    assert shown(config, "a") == "a: 1"


@pytest.mark.parametrize(
    ("text", "name", "part", "at"),
    [
        ("a: [1\nb: 2\n", "c.yaml", "flow sequence", 7),
        ("a: b: c\n", "c.yaml", "mapping values are not allowed", 4),
        ("\ta: 1\n", "c.yaml", "", 0),
        ("a: \x01", "c.yaml", "does not allow", 3),
        ("a: !!python/object/apply:os.system [ls]\n", "c.yaml", "constructor", 3),
        ("a: 1\n---\nb: 2\n", "c.yaml", "single document", 5),
        ("a: &x {b: *x}\n", "c.yaml", "recursive", 3),
        ("? {a: b}\n: 1\n", "c.yaml", "unhashable", 2),
        ('{"a": 1,}', "c.json", "double quotes", 8),
        ('{\n  // ZeRO\n  "a": 1}', "c.json", "no comments", 4),
        ("{'a': 1}", "c.json", "double quotes", 1),
        ("\ufeff{}", "c.json", "BOM", 0),
        ("", "c.json", "expecting value", 0),
    ],
)
def test_problems_have_a_place(text: str, name: str, part: str, at: int) -> None:
    config = read(text, name)
    assert config.problem is not None
    assert part in config.problem
    assert config.problem_span is not None
    assert config.problem_span.start == at
    assert not config.values


@pytest.mark.parametrize(("text", "name"), [("", "c.yaml"), ("- 1\n", "c.yaml"), ("[1]", "c.json"), ("3", "c.json")])
def test_files_without_keys_are_a_problem(text: str, name: str) -> None:
    assert read(text, name).problem is not None


@pytest.mark.parametrize(
    ("text", "name"), [("[" * 100_000, "c.json"), ("{" * 3000, "c.yaml"), ('{"a":' * 100 + "1" + "}" * 100, "c.json")]
)
def test_deep_nesting_is_a_problem_and_no_crash(text: str, name: str) -> None:
    assert read(text, name).problem is not None


def test_multiplying_aliases_are_a_problem_and_end_soon() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert read("\n".join(lines)).problem is not None


def test_a_missing_file() -> None:
    config = unread_config("no.yaml", "accelerate", "there is no file no.yaml", False)
    assert (config.exists, config.values, config.source) == (False, {}, None)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('abé😀"\\ \n:#', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abé😀"', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abcé😀", max_size=3), PLAIN, max_size=4), st.sampled_from([None, 1, 3]), st.booleans())
def test_json_places_hold_their_values(data: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    config = read(text, "c.json")
    assert config.data == data
    for value in config.values.values():
        assert json.loads(text[value.span.start : value.span.end]) == value.value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), PLAIN, max_size=4), st.sampled_from([True, False, None]))
def test_yaml_places_hold_their_values(data: dict[str, object], flow: bool | None) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    config = read(text)
    assert config.data == yaml.safe_load(text)
    for value in config.values.values():
        assert 0 <= value.span.start <= value.span.end <= len(text)
        if isinstance(value.value, (bool, int)):
            assert yaml.safe_load(text[value.span.start : value.span.end]) == value.value


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text("{}[]:,-&*a1\"' \n\t#!?|>%@", max_size=60), st.sampled_from(["c.yaml", "c.json"]))
def test_any_text_gives_a_value(text: str, name: str) -> None:
    config = read(text, name)
    if config.problem_span is not None:
        assert 0 <= config.problem_span.start <= config.problem_span.end <= len(text)
    for value in config.values.values():
        assert 0 <= value.span.start <= value.span.end <= len(text)
