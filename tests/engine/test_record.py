from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Generic, TypeVar

import pytest

from mgpu_doctor.model.record import dataclass, field, replace

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """A record with every kind of default."""

    x: int
    y: int = 2
    tags: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        return self.x + self.y


@dataclass(frozen=True, slots=True)
class Box(Generic[T]):
    """A generic record."""

    value: T


@dataclass(slots=True)
class Counter:
    """A record that may change."""

    count: int = 0
    seen: list[str] = field(default_factory=list)


def test_a_record_that_is_not_frozen_may_change_and_has_no_hash() -> None:
    counter = Counter()
    counter.count += 1
    counter.seen.append("a")
    assert counter == Counter(1, ["a"])
    assert Counter.__hash__ is None


def test_fields_are_taken_by_place_and_by_name() -> None:
    assert (Point(1).y, Point(1, 5).y, Point(x=1, y=7).total, Box("a").value) == (2, 5, 8, "a")
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1, z=2)  # type: ignore[call-arg]


def test_a_made_default_is_not_shared() -> None:
    assert Point(1).tags == {}
    assert Point(1).tags is not Point(1).tags


def test_equality_and_hash_are_by_value_and_type() -> None:
    assert Box(1) == Box(1)
    assert Box(1) != Box(2)
    other: object = (1,)
    assert Box(1) != other
    assert hash(Box("a")) == hash(Box("a"))
    assert len({Box(1), Box(1), Box(2)}) == 2


def test_nothing_can_be_changed_or_added() -> None:
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 2  # type: ignore[attr-defined]
    assert not hasattr(point, "__dict__")


def test_the_standard_library_takes_it_for_a_dataclass() -> None:
    assert dataclasses.is_dataclass(Point)
    assert [f.name for f in dataclasses.fields(Point)] == ["x", "y", "tags", "names"]
    assert dataclasses.replace(Point(1), y=9) == Point(1, 9)
    assert dataclasses.asdict(Point(1)) == {"x": 1, "y": 2, "tags": {}, "names": ()}


def test_copies() -> None:
    assert replace(Point(1, 2), x=5) == Point(5, 2)
    assert copy.copy(Point(1)) == Point(1)
    assert pickle.loads(pickle.dumps(Point(1, 3))) == Point(1, 3)
    with pytest.raises(TypeError):
        replace(Point(1), z=1)  # type: ignore[call-arg]


def test_it_is_shown_and_matched_like_a_dataclass() -> None:
    assert repr(Box(1)) == "Box(value=1)"
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


def test_the_model_is_imported_without_the_machinery() -> None:
    code = "import sys, mgpu_doctor.authoring; print({'dataclasses', 'inspect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
