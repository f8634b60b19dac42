"""What the verbs do alike: diagnose, correct, show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mgpu_doctor.cli.options import Shared
from mgpu_doctor.cli.output import chosen_format, emit, emit_lines, emit_rich
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.errors import UsageError
from mgpu_doctor.mend import mended
from mgpu_doctor.model.finding import Finding
from mgpu_doctor.model.report import Report
from mgpu_doctor.registry import Registry, load_checks

if TYPE_CHECKING:
    from rich.console import Console

_ROUNDS = 5
"""How often a corrected command is corrected again: one fix may make room for the next."""


class Correction(NamedTuple):
    """The corrected command, and what is still found in it."""

    text: str
    remaining: tuple[Finding, ...]


def requested(shared: Shared, mode: str) -> Request:
    """A request with the shared options filled in."""
    return Request(mode=mode, facts=shared.facts, select=shared.select, ignore=shared.ignore, fail_on=shared.fail_on)


def conclude(request: Request, shared: Shared) -> int:
    """Diagnose a request, show the report, and return the exit code."""
    registry = load_checks()
    _check_names(registry, shared)
    report = diagnose(request, registry)
    correction = _correct(request, report, registry)
    show(report, correction, shared)
    return report.exit_code


def show(report: Report, correction: Correction | None, shared: Shared) -> None:
    """Write a report in the format that is wanted."""
    text, remaining = correction or (None, ())
    match chosen_format(shared.format):
        case "json":
            from mgpu_doctor.render.json import dump, report_document

            commands = shared.show_commands or report.mode == "explain"
            emit(dump(report_document(report, commands=commands, corrected=text, remaining=remaining)))
        case "github":
            from mgpu_doctor.render.github import github_lines

            emit_lines(github_lines(report))
        case "plain":
            _show_plain(report, text, remaining, shared)
        case _:
            emit_rich(lambda console: _draw(console, report, text, remaining, shared), colour=shared.colour)


def _show_plain(report: Report, text: str | None, remaining: tuple[Finding, ...], shared: Shared) -> None:
    from mgpu_doctor.render import plain

    if shared.show_commands and report.mode != "explain":
        emit_lines(plain.command_lines(report))
    if report.mode == "explain":
        emit_lines(plain.explain_lines(report, text, remaining))
    elif report.mode == "lint":
        emit_lines(plain.lint_lines(report))
    else:
        emit_lines(plain.check_lines(report, text, remaining))


def _draw(console: Console, report: Report, text: str | None, remaining: tuple[Finding, ...], shared: Shared) -> None:
    from mgpu_doctor.render import console as drawing

    if shared.show_commands and report.mode != "explain":
        drawing.print_commands(console, report)
    if report.mode == "explain":
        drawing.print_explanation(console, report, text, remaining)
    elif report.mode == "lint":
        drawing.print_lint(console, report)
    else:
        drawing.print_check(console, report, text, remaining)


def _correct(request: Request, report: Report, registry: Registry) -> Correction | None:
    """The given command with every fix applied that can be, looked at again; None when nothing can be applied."""
    if request.command is None and not request.argv:
        return None
    text = mended(report.findings, report.case.sources[0])
    if text is None:
        return None
    tried = {text}
    for _ in range(_ROUNDS):
        again = diagnose(replace(request, command=text, argv=()), registry)
        further = mended(again.findings, again.case.sources[0])
        if further is None or further in tried:
            break
        tried.add(further)
        text = further
    else:
        again = diagnose(replace(request, command=text, argv=()), registry)
    return Correction(text, again.findings)


def _check_names(registry: Registry, shared: Shared) -> None:
    from mgpu_doctor.suppress import matches

    rules = [check.rule for check in registry.checks]
    for name in shared.select + shared.ignore:
        if not any(matches(name, rule.code, rule.slug) for rule in rules):
            raise UsageError(f"no rule is called {name!r}", hint=suggestion(registry, name))


def suggestion(registry: Registry, name: str) -> str:
    """A rule with a similar code or slug, or where the rules are listed."""
    from difflib import get_close_matches

    known = [text for check in registry.checks for text in (check.rule.code, check.rule.slug)]
    near = get_close_matches(name.upper() if name[-1:].isdigit() else name.lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else "mgpu-doctor rules lists them"
