"""What the verbs do alike: diagnose, correct, show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mgpu_doctor.cli.output import chosen_format, emit_json, emit_lines, emit_rich
from mgpu_doctor.cli.verb import Given
from mgpu_doctor.cli.waiting import Waiting, waiting
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.errors import InputError, MgpuDoctorError, UsageError
from mgpu_doctor.mend import mended
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.finding import Finding
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.report import Report
from mgpu_doctor.registry import Registry, load_checks

if TYPE_CHECKING:
    from rich.console import Console

_MOST_FIXES = 40
"""How many fixes are made one after the other before a corrected command is shown as it is."""


@dataclass(frozen=True, slots=True)
class Correction:
    """The corrected command, and what is still found in it."""

    text: str
    remaining: tuple[Finding, ...]


Observe = Callable[[Case, Waiting], Observation]
"""Runs the job of a case and says what was seen; meanwhile it may say what is being done."""


def conclude(mode: str, given: Given, observe: Observe | None = None, **request: Any) -> int:
    """Diagnose what was given, show the report, and return the exit code.

    ``request`` are further fields of :class:`~mgpu_doctor.diagnose.Request`.
    """
    registry = load_checks()
    shared: dict[str, Any] = {
        "mode": mode,
        "facts": given.text("facts"),
        "select": given.names("select"),
        "ignore": given.names("ignore"),
        "fail_on": given.text("fail_on"),
        "python": given.text("python"),
    }
    check_names(registry, shared["select"] + shared["ignore"])
    with waiting("looking at this machine" if shared["facts"] is None and mode != "lint" else "reading") as note:
        seen = None if observe is None else partial(_observed, observe, note, mode)
        refused: MgpuDoctorError | None = None
        try:
            report = diagnose(Request(**(shared | request)), registry, seen)
        except _NoProbeError as error:
            # What is known without it is still worth showing.
            refused = error.reason
            report = diagnose(Request(**(shared | request)), registry)
    if not report.case.sources and chosen_format(given.text("format")) in ("plain", "rich"):
        refuse_unread(report)
    correction = None
    if request.get("command") is not None or request.get("argv"):
        correction = _correct(report, registry, shared)
    show(report, correction, given)
    if refused is None:
        return report.exit_code
    from mgpu_doctor.cli.edge import INCOMPLETE_EXIT, complain

    complain(refused.message, refused.hint)
    return report.exit_code or INCOMPLETE_EXIT


class _NoProbeError(Exception):
    """The probe that was asked for beside a check cannot be made."""

    def __init__(self, reason: MgpuDoctorError) -> None:
        super().__init__(reason.message)
        self.reason = reason


def _observed(observe: Observe, note: Waiting, mode: str, case: Case) -> Observation:
    try:
        return observe(case, note)
    except MgpuDoctorError as error:
        if mode == "check":
            raise _NoProbeError(error) from error
        raise


def refuse_unread(report: Report) -> None:
    """End with what is wrong where not one of the given files could be read: "nothing found" would mislead."""
    unreadable = [problem.message for problem in report.problems if problem.kind == "input"]
    if unreadable:
        raise InputError("; ".join(unreadable))


def show(report: Report, correction: Correction | None, given: Given) -> None:
    """Write a report in the format that is wanted."""
    text, remaining = (correction.text, correction.remaining) if correction is not None else (None, ())
    commands = given.switch("show_commands") or report.mode == "explain"
    chosen = chosen_format(given.text("format"))
    if chosen == "json":
        from mgpu_doctor.render.json import report_document

        document = report_document(report, commands=commands, corrected=text, remaining=remaining)
        if report.case.observation is not None:
            from mgpu_doctor.cli.probe import shown_observation

            document["observation"] = shown_observation(report.case.observation)
        emit_json(document)
    elif chosen == "github":
        from mgpu_doctor.render.github import github_lines

        emit_lines(github_lines(report))
    elif chosen == "plain":
        _show_plain(report, text, remaining, commands=commands)
    else:
        colour = not given.switch("no_color")
        emit_rich(lambda console: _draw(console, report, text, remaining, commands=commands), colour=colour)


def _show_plain(report: Report, text: str | None, remaining: tuple[Finding, ...], *, commands: bool) -> None:
    from mgpu_doctor.render import plain

    if report.mode == "explain":
        emit_lines(plain.explain_lines(report, text, remaining))
        return
    if commands:
        emit_lines(plain.command_lines(report))
    if report.mode == "probe":
        emit_lines(plain.probed_lines(report, text, remaining))
    elif report.mode in ("lint", "logs"):
        emit_lines(plain.lint_lines(report) if report.mode == "lint" else plain.logs_lines(report))
    else:
        emit_lines(plain.check_lines(report, text, remaining))


def _draw(
    console: Console, report: Report, text: str | None, remaining: tuple[Finding, ...], *, commands: bool
) -> None:
    from mgpu_doctor.render import console as drawing

    if report.mode == "explain":
        drawing.print_explanation(console, report, text, remaining)
        return
    if commands:
        drawing.print_commands(console, report)
    if report.mode == "probe":
        drawing.print_probed(console, report, text, remaining)
    elif report.mode == "logs":
        drawing.print_logs(console, report)
    elif report.mode == "lint":
        drawing.print_lint(console, report)
    else:
        drawing.print_check(console, report, text, remaining)


def _correct(report: Report, registry: Registry, shared: dict[str, Any]) -> Correction | None:
    """The given command with every fix applied that can be, looked at again; None when nothing can be applied.

    One fix at a time: what a launcher refuses changes how the rest of its command line is read, so the
    other fixes are only right once the first has been made.
    """
    tried = {report.case.sources[0].text}
    best: Correction | None = None
    for _ in range(_MOST_FIXES):
        fixed = _next_text(report, tried)
        if fixed is None:
            break
        tried.add(fixed)
        report = diagnose(Request(**shared, command=fixed), registry)
        # A fix may lead to a fault of its own: what is shown is the best that was met on the way.
        if best is None or _badness(report.findings) < _badness(best.remaining):
            best = Correction(fixed, report.findings)
    return best


def _badness(findings: tuple[Finding, ...]) -> tuple[int, ...]:
    """Errors first, then warnings, then advice."""
    severities = [finding.severity.rank for finding in findings]
    return tuple(severities.count(rank) for rank in range(3))


def _next_text(report: Report, tried: set[str]) -> str | None:
    """The command after the first fix that leads somewhere new."""
    source = report.case.sources[0]
    for finding in report.findings:
        text = mended((finding,), source)
        if text is not None and text not in tried:
            return text
    return None


def check_names(registry: Registry, names: tuple[str, ...]) -> None:
    """Refuse a code or slug that no rule has.

    Raises:
        UsageError: with the nearest name.
    """
    from mgpu_doctor.suppress import matches

    for name in names:
        if not any(matches(name, check.code, check.slug) for check in registry.checks):
            raise UsageError(f"no rule is called {name!r}", hint=suggestion(registry, name))


def suggestion(registry: Registry, name: str) -> str:
    """A rule with a similar code or slug, or where the rules are listed."""
    near = nearest(registry, name, 0.6)
    return f"did you mean {near}?" if near is not None else "mgpu-doctor rules lists them"


def nearest(registry: Registry, name: str, likeness: float) -> str | None:
    """The code or slug that is most similar to a name; None where none is as alike as that, from 0 to 1."""
    from difflib import get_close_matches

    known = [text for check in registry.checks for text in (check.code, check.slug)]
    near = get_close_matches(name.upper() if name[-1:].isdigit() else name.lower(), known, n=1, cutoff=likeness)
    return near[0] if near else None
