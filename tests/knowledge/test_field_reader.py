"""Dataclass fields become options by HfArgumentParser's rules."""

from __future__ import annotations

import pytest

from mgpu_doctor.knowledge.dataclass_fields import read_fields
from mgpu_doctor.knowledge.declared import BOOLEAN, UnreadableSourceError, with_spellings
from mgpu_doctor.knowledge.reader import parse_module
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec

START = "from dataclasses import dataclass, field\nfrom typing import *\n"


def fields(text: str, name: str = "Arguments") -> dict[str, OptionSpec]:
    found = read_fields(parse_module(START + text, "package.args", lambda _: None), name, frozenset({"Outside"}))
    return {spec.dest: spec for spec in found}


def one(annotation: str, value: str = "") -> OptionSpec:
    return fields(f"@dataclass\nclass Arguments:\n    x: {annotation}{value}\n")["x"]


@pytest.mark.parametrize(
    ("annotation", "value", "kind", "nargs", "default", "required"),
    [
        ("int", " = 3", "int", None, 3, False),
        ("str", "", "str", None, None, True),
        ("Optional[str]", " = field(default=None)", "str", None, None, False),
        ("str | None", " = None", "str", None, None, False),
        ("'Optional[float]'", " = None", "float", None, None, False),
        ("bool", " = field(default=False)", BOOLEAN, "?", False, False),
        ("Optional[bool]", " = None", BOOLEAN, None, None, False),
        ("Optional[bool]", " = True", BOOLEAN, "?", True, False),
        ("Union[str, bool]", " = 'no'", BOOLEAN, "?", "no", False),
        ("Optional[Union[dict, str]]", " = None", "str", None, None, False),
        ("List[int]", " = field(default_factory=list)", "int", "+", [], False),
        ("list[str]", " = field(default_factory=lambda: ['a'])", "str", "+", ["a"], False),
        ("Literal['a', 'b']", " = 'a'", "str", None, "a", False),
    ],
)
def test_annotations(
    annotation: str, value: str, kind: str, nargs: str | None, default: object, required: bool
) -> None:
    spec = one(annotation, value)
    assert (spec.type, spec.nargs, spec.default, spec.required) == (kind, nargs, default, required)


def test_literals_and_enumerations_are_choices() -> None:
    assert one("Literal['a', 'b']").choices == ("a", "b")
    found = fields(
        "class Kind(str, Enum):\n    A = 'a'\n    B = 'b'\n"
        "@dataclass\nclass Arguments:\n    kind: Kind = Kind.B\n    bits: Optional[Literal[4, 8]] = None\n"
    )
    assert (found["kind"].choices, found["kind"].default) == (("a", "b"), "b")
    assert (found["bits"].choices, found["bits"].type) == ((4, 8), "choice")


def test_bases_come_first_and_are_overridden_and_outside_ones_left_out() -> None:
    found = fields(
        "class Base:\n    a: int = 1\n    b: int = 2\n"
        "class Arguments(Base, Outside):\n    c: int = 3\n    a: str = 'x'\n    d: int = field(init=False)\n"
    )
    assert list(found) == ["a", "b", "c"]
    assert (found["a"].type, found["a"].default) == ("str", "x")


def test_a_base_by_another_name_in_if_else() -> None:
    found = fields(
        "class One:\n    one: int = 1\nclass Two:\n    two: int = 2\n"
        "if flag():\n    Base = One\nelse:\n    Base = Two\nclass Arguments(Base):\n    c: int = 3\n"
    )
    assert list(found) == ["two", "c"]


def test_a_default_made_by_a_call_is_unknown() -> None:
    assert isinstance(one("str", " = compute()").default, Unknown)


def test_a_missing_class_or_base_is_refused() -> None:
    with pytest.raises(UnreadableSourceError, match="Arguments"):
        fields("class Other:\n    pass\n")
    with pytest.raises(UnreadableSourceError, match="Gone"):
        fields("class Arguments(Gone):\n    pass\n")


def test_spellings() -> None:
    switch = one("bool", " = True")
    plain = OptionSpec("num_epochs", ("--num_epochs",), type="int")
    assert [spec.flags for spec in with_spellings([switch, plain], dashes=True)] == [
        ("--x",),
        ("--no_x", "--no-x"),
        ("--num_epochs", "--num-epochs"),
    ]
    assert [spec.flags for spec in with_spellings([plain], dashes=False)] == [("--num_epochs",)]
    negative = with_spellings([switch], dashes=True)[1]
    assert (negative.dest, negative.action, negative.nargs, negative.const) == ("x", "store_false", 0, False)
