"""Splitting by option tables where the real parsers cannot be asked: places, unknown words, suggestions."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import launch, words_of
from mgpu_doctor.launchers.arguments import OptionTable, parse_arguments, suggest
from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.source import Span

SPECS = (
    OptionSpec("count", ("--num_things", "--num-things", "-n"), type="int"),
    OptionSpec("name", ("--name",), choices=("a", "b")),
    OptionSpec("switch", ("--switch", "-s"), action="store_true", nargs=0),
    OptionSpec("quiet", ("-q",), action="store_true", nargs=0),
    OptionSpec("many", ("--many",), nargs="*"),
    OptionSpec("two", ("--two",), nargs=2, type="int"),
    OptionSpec("perhaps", ("--perhaps",), nargs="?", const="c"),
    OptionSpec("collect", ("--collect",), action="append"),
    OptionSpec("help", ("--help", "-h"), action="help", nargs=0),
)
TABLE = OptionTable(SPECS, abbreviations=True)
STRICT = OptionTable(SPECS, abbreviations=False)


def _argparse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--num_things", "--num-things", "-n", type=int, dest="count")
    parser.add_argument("--name", choices=("a", "b"))
    parser.add_argument("--switch", "-s", action="store_true")
    parser.add_argument("-q", action="store_true", dest="quiet")
    parser.add_argument("--many", nargs="*")
    parser.add_argument("--two", nargs=2, type=int)
    parser.add_argument("--perhaps", nargs="?", const="c")
    parser.add_argument("--collect", action="append")
    parser.add_argument("script")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def test_spans_of_options_and_values() -> None:
    text = "--num_things 4 --name=b t.py"
    parsed = parse_arguments(words_of(text), TABLE)
    first, second = parsed.options
    assert text[slice(*first.span)] == "--num_things 4"
    assert text[slice(*second.span)] == "--name=b"
    assert text[slice(*second.values[0].span)] == "b"
    assert (first.converted, second.converted) == (4, "b")


def test_glued_values_and_clusters() -> None:
    parsed = parse_arguments(words_of("-sqn3 t.py"), TABLE)
    assert [(option.dest, option.converted) for option in parsed.options] == [
        ("switch", True),
        ("quiet", True),
        ("count", 3),
    ]


def test_abbreviations_only_where_they_are_taken() -> None:
    assert parse_arguments(words_of("--num_th 3 t.py"), TABLE).problems == ()
    assert parse_arguments(words_of("--num_th 3 t.py"), STRICT).problems[0].kind == "unknown-option"


def test_an_ambiguous_prefix_of_one_option_is_read_as_meant() -> None:
    parsed = parse_arguments(words_of("--num 3 t.py"), TABLE)
    assert [problem.kind for problem in parsed.problems] == ["ambiguous-option"]
    assert parsed.options[0].converted == 3


@pytest.mark.parametrize(
    ("python", "count"),
    [("3.11.7", 1), ("3.12.1", 1), ("3.12.8", 0), ("3.13.0", 1), ("3.13.1", 0), ("3.14.0", 0), (None, 0), ("3.12", 0)],
)
def test_the_scripts_own_words_may_be_ambiguous_to_older_python(python: str | None, count: int) -> None:
    assert len(parse_arguments(words_of("t.py --num 3"), TABLE, python=python).problems) == count


def test_an_unknown_value_is_no_problem() -> None:
    parsed = parse_arguments(words_of("--num_things $N --name=$NAME t.py"), TABLE)
    assert parsed.problems == ()
    assert parsed.opaque is None
    assert all(isinstance(option.converted, Unknown) for option in parsed.options)
    assert parsed.target is not None


def test_nothing_is_reported_behind_a_word_that_may_be_anything() -> None:
    parsed = parse_arguments(words_of("--num_things x $ARGS --wrong --num_things y t.py"), TABLE)
    assert [problem.kind for problem in parsed.problems] == ["invalid-value"]
    assert parsed.opaque is not None
    assert parsed.target is not None
    assert parsed.target.value == "t.py"


def test_a_path_with_an_unknown_part_is_the_script() -> None:
    word = Word(Span(0, 10), (Piece(None, "$DIR", "DIR"), Piece("/t.py", "/t.py")), splits=True)
    parsed = parse_arguments((word, *words_of("--wrong")), TABLE)
    assert parsed.opaque is None
    assert parsed.target is word


def test_the_value_of_an_unknown_option_is_not_the_script() -> None:
    parsed = parse_arguments(words_of("--what 3 t.py"), TABLE)
    assert parsed.target is not None
    assert parsed.target.value == "t.py"


def test_help_stops_the_reading() -> None:
    parsed = parse_arguments(words_of("--help --wrong t.py"), TABLE)
    assert (parsed.stops, parsed.target, parsed.problems) == ("--help", None, ())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--num-thing", "--num-things"), ("--NAME", "--name"), ("--swich", "--switch"), ("--zzz", None), ("-x", None)],
)
def test_suggestions(typed: str, meant: str | None) -> None:
    found = suggest(typed, TABLE)
    assert (found[0] if found else None) == meant


@given(
    st.lists(
        st.sampled_from(
            ["--num_things", "--num-th", "4", "-n", "-n5", "x", "--name", "a", "c", "--name=b", "--switch", "-s", "-sq",
             "--switch=1", "--many", "--two", "1", "--perhaps", "--perhaps=z", "--collect", "k", "--", "-", "-1",
             "t.py", "--wrong", "--num", "a b"]
        ),
        max_size=9,
    )
)  # fmt: skip
def test_agrees_with_argparse(argv: list[str]) -> None:
    words = tuple(Word(Span(i, i + 1), (Piece(text, text),)) for i, text in enumerate(argv))
    parsed = parse_arguments(words, TABLE)
    accepted = not parsed.problems and parsed.target is not None
    try:
        theirs: argparse.Namespace | None = _argparse().parse_args(list(argv))
    except (argparse.ArgumentError, SystemExit):
        theirs = None
    if theirs is None:
        # A prefix among the script's own words is refused by older Pythons only.
        assert not accepted or "--num" in argv
        return
    assert accepted, parsed.problems
    assert parsed.target is not None
    assert (parsed.target.value, [word.value for word in parsed.rest]) == (theirs.script, theirs.rest)
    ours: dict[str, object] = {"switch": False, "quiet": False}
    for option in parsed.options:
        value = list(option.converted) if isinstance(option.converted, tuple) else option.converted
        if option.spec.action == "append":
            before = ours.get(option.dest)
            value = [*(before if isinstance(before, list) else []), value]
        ours[option.dest] = value
    given_there = {dest: value for dest, value in vars(theirs).items() if dest not in {"script", "rest"}}
    assert _without_none(given_there) == _without_none(ours)


def _without_none(values: dict[str, object]) -> dict[str, object]:
    return {dest: value for dest, value in values.items() if value is not None}


def test_the_value_behind_an_abbreviation_has_its_own_place() -> None:
    found = launch("torchrun --nproc_per=4 train.py")
    (option,) = found.layers[0].options
    assert found.command.source.slice(option.values[0].span) == "4"
