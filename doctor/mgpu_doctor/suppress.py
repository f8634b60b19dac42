"""Comments that accept a finding: ``# mgpu-doctor: ignore[MGD301] the port is ours``.

A comment acts on findings of the line it stands on, or, alone on a line (or several), on
the command directly below. ``ignore-file[…]`` acts on the whole file. Codes, slugs and code
prefixes (``MGD3``) are taken; a reason is required, so that the next reader knows why.
"""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.model.finding import Finding
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.report import Problem, Suppressed
from mgpu_doctor.model.source import Source, Span

_DIRECTIVE = pattern(
    r"(?:\#|<!--|//|^\.\.)\s*mgpu-doctor:\s*(?P<scope>ignore-file|ignore)\s*(?:\[(?P<names>[^\]\n]*)\])?(?P<reason>[^\n]*)"
)
_DRESSING = pattern(r"^[ \t]*\"|(?:\\n)?\",?[ \t]*$")
_FAMILY = pattern(r"([a-z]{2,6}[0-9]{0,2})x{0,2}\Z")


@dataclass(frozen=True, slots=True)
class Directive:
    """One suppressing comment: the lines that it acts on, what it accepts, and why."""

    names: tuple[str, ...]
    reason: str
    first_line: int
    last_line: int


def apply_suppressions(
    findings: Iterable[Finding], spans: Iterable[tuple[Source, Span]]
) -> tuple[tuple[Finding, ...], tuple[Suppressed, ...], tuple[Problem, ...]]:
    """Split findings into those that stay and those that a comment accepts.

    ``spans`` are the commands' places: a comment above a command that runs over several lines
    accepts findings on all of them. The problems are comments that accept nothing because
    they name no rule or give no reason.
    """
    commands = tuple(spans)
    directives: dict[int, tuple[Directive, ...]] = {}
    kept: list[Finding] = []
    suppressed: list[Suppressed] = []
    problems: list[Problem] = []
    sources = {id(source): source for source, _ in commands}
    found = tuple(findings)
    for finding in found:
        if finding.location is not None:
            sources.setdefault(id(finding.location.source), finding.location.source)
    for key, source in sources.items():
        directives[key], bad = read_directives(source, tuple(span for s, span in commands if s is source))
        problems.extend(bad)
    for finding in found:
        match = _match(finding, directives)
        if match is None:
            kept.append(finding)
        else:
            suppressed.append(Suppressed(finding, match.reason))
    return tuple(kept), tuple(suppressed), tuple(dict.fromkeys(problems))


def read_directives(
    source: Source, commands: tuple[Span, ...] = ()
) -> tuple[tuple[Directive, ...], tuple[Problem, ...]]:
    """The suppressing comments of a text, and those that cannot be taken."""
    if "mgpu-doctor:" not in source.text:
        return (), ()
    directives: list[Directive] = []
    problems: list[Problem] = []
    ends = {source.position(span.start).line: source.position(span.end).line for span in commands}
    for match in _DIRECTIVE.finditer(source.text):
        line = source.position(match.start()).line
        names = tuple(name.strip() for name in (match["names"] or "").split(",") if name.strip())
        reason = _undressed(source, match["reason"]).replace("-->", "").strip(" \t\r:-—")
        if not names or not reason:
            missing = "rules, like ignore[MGD301]" if not names else "a reason behind the bracket"
            problems.append(Problem("suppression", f"{source.name}:{line}", f"accepts nothing: it lacks {missing}"))
            continue
        first, last = _reach(source, match["scope"], line, match.start(), ends)
        directives.append(Directive(names, reason, first, last))
    return tuple(directives), tuple(problems)


def _reach(source: Source, scope: str, line: int, start: int, ends: dict[int, int]) -> tuple[int, int]:
    if scope == "ignore-file":
        return 1, source.line_count
    before = _undressed(source, source.text[source.line_span(line).start : start])
    if before.strip():
        return line, max(line, ends.get(line, line))
    below = line + 1
    while below < source.line_count and _is_passed_over(_undressed(source, source.slice(source.line_span(below)))):
        below += 1
    return line, max(below, ends.get(below, below))


def _undressed(source: Source, text: str) -> str:
    """A line of a notebook without the JSON around it; any other line as it is."""
    if source.kind != "notebook":
        return text
    return _DRESSING.sub("", text)


def _is_passed_over(text: str) -> bool:
    """Whether a line may stand between a comment and its command: blank, comment, or a fence's opening."""
    stripped = text.strip()
    return not stripped or stripped.startswith(("#", "<!--", "```", "~~~"))


def _match(finding: Finding, directives: dict[int, tuple[Directive, ...]]) -> Directive | None:
    if finding.location is None:
        return None
    source, span = finding.location.source, finding.location.span
    first, last = source.position(span.start).line, source.position(max(span.start, span.end - 1)).line
    for directive in directives.get(id(source), ()):
        if directive.first_line <= last and first <= directive.last_line and names_rule(directive.names, finding):
            return directive
    return None


def names_rule(names: Iterable[str], finding: Finding) -> bool:
    """Whether one of the names (code, slug, code prefix, in any case) means this finding's rule."""
    return any(matches(name, finding.code, finding.slug) for name in names)


def matches(name: str, code: str, slug: str) -> bool:
    """Whether a name means this rule: its code, its slug, ``all``, or a family such as ``MGD3`` or ``MGD3xx``."""
    name = name.strip().lower()
    if name in (slug, code.lower(), "all"):
        return True
    family = _FAMILY.match(name)
    return family is not None and code.lower().startswith(family[1])
