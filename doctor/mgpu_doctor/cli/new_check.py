"""``mgpu-doctor new-check``: the skeleton of a check, with its examples to fill in."""

from __future__ import annotations

import os
import re

from mgpu_doctor.cli.verb import Given, Option, Verb
from mgpu_doctor.errors import UsageError

_TEMPLATE = '''\
"""{title}."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import Case, Example, Finding, Reference, Rule, Severity, report

RULE = Rule(
    code="{code}",
    slug="{slug}",
    title="{title}",
    severity=Severity.{severity},
    summary="The cause in one line.",
    why="What happens, and why it matters.",
    bad=(Example("what it shows", command="torchrun --nproc-per-node 2 bad.py"),),
    good=(Example("near miss that must stay silent", command="torchrun --nproc-per-node 2 train.py"),),
    sources=(Reference("package version, file function()", "the behaviour in one sentence"),),
    fix="What to do instead.",
)


def find(case: Case) -> Iterator[Finding]:
    """What this rule sees in a case."""
    for launch in case.launches:
        if launch.target.value == "bad.py":
            word = launch.target.word
            location = launch.command.locate(word.span) if word is not None else None
            yield report(RULE, "say what is wrong, with numbers, then why it matters", location)
'''

_TEST = '''\
"""The examples of {code} hold."""

from __future__ import annotations

from mgpu_doctor.authoring import Check
from mgpu_doctor.testing import check_examples

from {module} import RULE, find


def test_examples_of_{name}() -> None:
    check_examples(Check(RULE, find))
'''


def run(given: Given) -> int:
    """Write the file, and the test when it is wanted."""
    slug, code = given.words[0], given.text("code") or ""
    into, tests = given.text("into") or ".", given.text("tests")
    severity = given.text("severity") or "warning"
    title = given.text("title")
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) is None or slug[0].isdigit():
        raise UsageError(f"slug {slug!r} is not lower-case words joined by hyphens", hint="for instance: port-in-use")
    if re.fullmatch(r"[A-Z]{2,6}[0-9]{3}", code) is None:
        raise UsageError(f"code {code!r} is not letters and three digits", hint="for instance: ABC101")
    _refuse_taken(code, slug)
    name = slug.replace("-", "_")
    words = title or slug.replace("-", " ").capitalize()
    if any(character in words for character in '"\\\n'):
        raise UsageError("the title holds a quotation mark, a backslash or a newline")
    path = os.path.join(into, f"{name}.py")
    _write(path, _TEMPLATE.format(code=code, slug=slug, title=words.rstrip("."), severity=severity.upper()))
    if tests is not None:
        test = os.path.join(tests, f"test_{name}.py")
        _write(test, _TEST.format(code=code, name=name, module=_module_of(into, name)))
    print("next: fill in the examples, run them, and list the check where the entry point says (CHECKS)")
    return 0


def _refuse_taken(code: str, slug: str) -> None:
    from mgpu_doctor.registry import load_checks

    registry = load_checks()
    for name in (code, slug):
        taken = registry.find(name)
        if taken is not None:
            raise UsageError(f"{name} is taken: {taken.rule.code} {taken.rule.slug} of {taken.distribution}")


def _module_of(folder: str, name: str) -> str:
    """The dotted name of a module in a folder: its packages upwards as far as there is an ``__init__.py``."""
    parts = [name]
    folder = os.path.abspath(folder)
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        parts.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    return ".".join(parts)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path} exists and is left alone") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    print(f"wrote {path}")


VERB = Verb(
    "new-check",
    "Write the skeleton of a new check: one file, with its rule, its examples and its function.",
    "SLUG",
    (
        Option("--code", "Letters and three digits; MGD is for the built-in rules.", "CODE", required=True),
        Option("--title", "The cause in a few words. Default: made from the slug.", "TEXT"),
        Option("--severity", "Default: warning.", "LEVEL", ("error", "warning", "advice")),
        Option("--into", "The package folder that gets the file. Default: here.", "DIR"),
        Option("--tests", "Also write a test here that runs the rule's examples.", "DIR"),
    ),
    run,
    ("mgpu-doctor new-check my-cause --code ABC101 --into src/my_checks --tests tests",),
    least_words=1,
    most_words=1,
)
