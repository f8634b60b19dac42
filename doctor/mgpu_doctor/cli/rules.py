"""``mgpu-doctor rules``, and a rule's page for ``explain RULE``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mgpu_doctor.cli.output import chosen_format, emit, emit_json, emit_lines, emit_rich
from mgpu_doctor.cli.verb import NO_COLOR, Given, Option, Verb

if TYPE_CHECKING:
    from mgpu_doctor.model.rule import AnyCheck


_NEARLY = 0.85
"""From how alike to a rule's name a word is taken for a slip of the pen, and not for a command."""


def run(given: Given) -> int:
    """List the rules; 3 when a plugin cannot be used."""
    from mgpu_doctor.registry import load_checks
    from mgpu_doctor.render.clean import one_line

    registry = load_checks()
    chosen = chosen_format(given.text("format"))
    if chosen == "json":
        from mgpu_doctor.render.json import SCHEMA_VERSION, rule_document

        document = {
            "schema_version": SCHEMA_VERSION,
            "rules": [rule_document(check.rule, check.distribution) for check in registry.checks],
            "problems": [{"subject": p.subject, "message": p.message} for p in registry.problems],
        }
        emit_json(document)
    elif chosen == "plain":
        emit_lines(_line(check) for check in registry.checks)
    else:
        from mgpu_doctor.render.console import print_rules

        emit_rich(lambda console: print_rules(console, registry.checks), colour=not given.switch("no_color"))
    for problem in registry.problems:
        print(f"mgpu-doctor: {one_line(problem.subject)}: {one_line(problem.message)}", file=sys.stderr)
    return 3 if registry.problems else 0


def _line(check: AnyCheck) -> str:
    from mgpu_doctor.render.clean import one_line

    rule = check.rule
    return one_line(f"{rule.code} {rule.slug} {rule.severity.value}: {rule.summary}")


def explain_rule(name: str, given: Given) -> bool:
    """Show a rule's page; False when the name is no rule's and may be a command.

    Raises:
        UsageError: the name has the form of a code that no rule has, or is nearly a rule's.
    """
    from mgpu_doctor.cli.session import nearest, suggestion
    from mgpu_doctor.errors import UsageError
    from mgpu_doctor.registry import load_checks

    registry = load_checks()
    check = registry.find(name)
    if check is None:
        if name.strip()[-3:].isdigit() or nearest(registry, name.strip(), _NEARLY) is not None:
            raise UsageError(f"no rule is called {name.strip()!r}", hint=suggestion(registry, name.strip()))
        return False
    _show_page(check, given)
    return True


def _show_page(check: AnyCheck, given: Given) -> None:
    chosen = chosen_format(given.text("format"))
    if chosen == "json":
        from mgpu_doctor.render.json import SCHEMA_VERSION, rule_document

        emit_json({"schema_version": SCHEMA_VERSION, "rule": rule_document(check.rule, check.distribution)})
        return
    from mgpu_doctor.render.clean import clean
    from mgpu_doctor.rule_page import rule_page

    text = clean(rule_page(check.rule, check.distribution))
    if chosen == "rich":
        from rich.markdown import Markdown

        page = Markdown(text, hyperlinks=False)
        emit_rich(lambda console: console.print(page), colour=not given.switch("no_color"), dense=True)
    else:
        emit(text)


VERB = Verb(
    "rules",
    "List the rules, those of installed plugins included.",
    "",
    (
        Option("--format", "Default: rich on a terminal, plain elsewhere.", "FORMAT", ("rich", "plain", "json")),
        NO_COLOR,
    ),
    run,
    ("mgpu-doctor rules", "mgpu-doctor rules --format json"),
    most_words=0,
)
