"""The static reader on small parsers of our own; the real ones are compared in test_against_launchers.py."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.knowledge.declared import MAXIMUM_FILE_SIZE, ParserTable, UnreadableSourceError
from mgpu_doctor.knowledge.reader import parse_module, read_parser
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec


def read(text: str, function: str = "build", **modules: str) -> ParserTable:
    return read_parser(parse_module(text, "package.main", modules.get), (function,))


def only(text: str, **modules: str) -> OptionSpec:
    options = [option for option in read(text, **modules).options if option.dest != "help"]
    assert len(options) == 1
    return options[0]


def body(*lines: str) -> str:
    inner = "\n".join(f"    {line}" for line in ("p = argparse.ArgumentParser()", *lines))
    return f"import argparse\ndef build():\n{inner}\n    return p\n"


def test_names_flags_types_and_defaults() -> None:
    spec = only(body('p.add_argument("-n", "--num-gpus", type=int, default=-1, help="x" "y")'))
    assert spec == OptionSpec("num_gpus", ("-n", "--num-gpus"), type="int", default=-1)


@pytest.mark.parametrize(
    ("written", "nargs", "const", "default"),
    [
        ("action='store_true'", 0, True, False),
        ("action='store_false'", 0, False, True),
        ("action='store_true', default=None", 0, True, None),
        ("nargs='?', const='a', default='b'", "?", "a", "b"),
        ("nargs=argparse.REMAINDER", "...", None, None),
        ("nargs=3", 3, None, None),
    ],
)
def test_actions_and_numbers_of_values(written: str, nargs: object, const: object, default: object) -> None:
    spec = only(body(f'p.add_argument("--x", {written})'))
    assert (spec.nargs, spec.const, spec.default) == (nargs, const, default)


def test_variable_backed_options_take_a_value_and_their_switches_none() -> None:
    table = read(
        "from torch.distributed.argparse_util import check_env, env\n"
        + body(
            'p.add_argument("--nnodes", action=env, default="1:1")', 'p.add_argument("--standalone", action=check_env)'
        )
    )
    nnodes, standalone = table.options[1:]
    assert (nnodes.action, nnodes.nargs, nnodes.default) == ("env", None, "1:1")
    assert (standalone.action, standalone.nargs, standalone.const, standalone.default) == ("env", 0, True, False)


def test_choices_are_followed_into_other_modules_of_the_package() -> None:
    spec = only(
        "from .other import BACKENDS\n" + body('p.add_argument("--b", choices=["no"] + [b.lower() for b in BACKENDS])'),
        **{"package.other": 'BACKENDS = ["EAGER", "INDUCTOR"]\n'},
    )
    assert spec.choices == ("no", "eager", "inductor")


def test_values_of_an_enumeration_are_choices() -> None:
    spec = only(
        "from package.modes import Mode\n" + body('p.add_argument("--m", choices=[mode.value for mode in Mode])'),
        **{"package.modes": "from enum import Enum\nclass Mode(Enum):\n    ONE = 'one'\n    TWO = 'two'\n"},
    )
    assert spec.choices == ("one", "two")


def test_a_computed_default_is_unknown() -> None:
    spec = only(body('p.add_argument("--x", default=os.environ.get("X", "1"))'))
    assert isinstance(spec.default, Unknown)


def test_a_custom_parser_takes_both_spellings_and_no_abbreviations() -> None:
    table = read(
        "def build():\n"
        "    parser = CustomArgumentParser('x', add_help=False, allow_abbrev=False)\n"
        "    parser.add_argument('-q', '--quiet', action='store_true')\n"
        "    group = parser.add_argument_group('g')\n"
        "    group.add_argument('--multi_gpu', action='store_true')\n"
    )
    quiet, multi = table.options
    assert quiet.default is None
    assert (multi.flags, multi.default) == (("--multi_gpu", "--multi-gpu"), False)
    assert not table.abbreviations


@pytest.mark.parametrize(
    "text",
    [
        "def other():\n    pass\n",
        "def build():\n    return None\n",
        "def build(:\n",
        "\x00",
        "x" * (MAXIMUM_FILE_SIZE + 1),
    ],
)
def test_what_is_no_parser_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(UnreadableSourceError, match=r"package\.main|build"):
        read(text)


def test_modules_that_import_each_other_in_a_circle_end() -> None:
    text = "from package.other import X\n" + body('p.add_argument("--x", default=X)')
    assert isinstance(
        only(text, **{"package.other": "from package.main import X\n", "package.main": text}).default, Unknown
    )


LONG = st.from_regex(r"--[a-z][a-z_-]{0,8}[a-z]", fullmatch=True)


@given(
    flags=st.lists(LONG, min_size=1, max_size=3, unique=True),
    default=st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
    nargs=st.none() | st.sampled_from(["?", "*", "+", 2]),
    choices=st.none() | st.lists(st.text(max_size=3), min_size=1, max_size=3),
)
def test_any_declaration_is_read_as_argparse_makes_it(
    flags: list[str], default: object, nargs: str | int | None, choices: list[str] | None
) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    action = parser.add_argument(*flags, default=default, nargs=nargs, choices=choices)
    given_flags = ", ".join(map(repr, flags))
    spec = only(body(f"p.add_argument({given_flags}, default={default!r}, nargs={nargs!r}, choices={choices!r})"))
    assert spec == OptionSpec(
        action.dest,
        tuple(flags),
        nargs=nargs,
        default=default,
        choices=None if choices is None else tuple(choices),
    )
