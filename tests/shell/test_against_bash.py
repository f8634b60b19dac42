"""What we say that a command receives is what bash gives it."""

from __future__ import annotations

import os
from pathlib import Path

from bash_scripts import Maker, run_in_bash
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.shell import parse_shell

COUNT = int(os.environ.get("MGPU_DOCTOR_FUZZ", "0")) or 600
"""Scripts for each test; MGPU_DOCTOR_FUZZ raises it."""


def _shown(script: str) -> dict[str, list[Command]]:
    """Our ``show`` commands by their number."""
    found: dict[str, list[Command]] = {}
    excerpt = Excerpt.whole(Source("x.sh", script, "shell"))
    for command in parse_shell(excerpt, environment={"HOME": "/nowhere"}).commands:
        if command.name == "show" and len(command.words) > 1 and command.words[1].value:
            found.setdefault(command.words[1].value, []).append(command)
    return found


def _claim(command: Command) -> tuple[str, ...] | None:
    """The arguments that we claim to know, None when any is unknown."""
    if any(word.splits or word.value is None for word in command.words):
        return None
    return tuple(word.value or "" for word in command.words[1:])


def _agrees(command: Command, seen: tuple[str, ...]) -> bool:
    """Whether an execution is what we claimed, as far as we claimed anything."""
    claim = _claim(command)
    if claim is not None:
        return claim == seen
    if any(word.splits for word in command.words):
        return True
    values = [word.value for word in command.words[1:]]
    return len(values) == len(seen) and all(
        ours is None or ours == theirs for ours, theirs in zip(values, seen, strict=True)
    )


def _compare(scripts: list[str], directory: Path) -> tuple[int, int]:
    """Compare every execution; answers with how many were known and how many there were."""
    known = total = 0
    for script, calls in zip(scripts, run_in_bash(scripts, directory), strict=True):
        ours = _shown(script)
        for seen in calls:
            commands = ours.get(seen[0], []) if seen else []
            total += 1
            if not commands and "eval" in script:
                continue  # a text whose quoting is not known is not followed
            assert commands, f"show {seen} is not among our commands of\n{script}"
            known += any(_claim(command) == seen for command in commands)
            assert any(_agrees(command, seen) for command in commands), (
                f"bash: {seen}\nours: {[[w.value for w in c.words[1:]] for c in commands]}\n{script}"
            )
    return known, total


def test_straight_scripts(tmp_path: Path) -> None:
    known, total = _compare([Maker(seed).script() for seed in range(COUNT)], tmp_path)
    assert total > COUNT
    assert known > 0.5 * total


def test_literal_words_are_all_known(tmp_path: Path) -> None:
    known, total = _compare([Maker(seed, literal=True).script() for seed in range(COUNT)], tmp_path)
    assert known > 0.98 * total


def test_branches_loops_and_functions(tmp_path: Path) -> None:
    known, total = _compare([Maker(seed, rich=True).script() for seed in range(COUNT)], tmp_path)
    assert total > COUNT
    assert known > 0.3 * total
