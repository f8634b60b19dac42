"""The report as plain lines: no colour, no boxes, no dependence on the terminal's width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mgpu_doctor.model.device_map import DeviceMap
from mgpu_doctor.model.finding import Finding, Fix
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.source import Location
from mgpu_doctor.render.clean import mask, one_line, shown
from mgpu_doctor.render.devices import device_words, map_note
from mgpu_doctor.render.excerpt import excerpt
from mgpu_doctor.render.logs import head_lines
from mgpu_doctor.render.machine import machine_lines
from mgpu_doctor.render.story import Story, basis, tell, why_unknown
from mgpu_doctor.render.summary import (
    count_line,
    family_rows,
    in_reading_order,
    incomplete_lines,
    place,
    skipped_by_reason,
    states_line,
    unrecognised,
)

_WIDTH = 160


def explain_lines(report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()) -> Iterator[str]:
    """What would run, what is wrong with it, and the corrected command."""
    for number, launch in enumerate(report.case.launches):
        yield from _story_lines(tell(launch, report.case.facts, report.case), why_unknown(launch))
        if number < len(report.maps):
            yield from _map_lines(report.maps[number])
        yield ""
    if not report.case.launches:
        yield "no launch command is recognised in this text"
        yield ""
    yield "reasoned from:"
    yield from (f"  {line}" for line in basis(report.case))
    yield ""
    yield from _finding_blocks(report)
    if corrected is not None:
        yield ""
        yield from _corrected_lines(corrected, tuple(remaining))


def check_lines(report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()) -> Iterator[str]:
    """What was seen of the job, the machine, how each family of checks went, then the findings."""
    yield from _seen_lines(report)
    machine = machine_lines(report.case.facts)
    if machine:
        yield from (f"{label}: {text}" for label, text in machine)
        if len(report.maps) == 1:
            yield from _map_lines(report.maps[0])
        yield ""
    for row in family_rows(report):
        yield f"{row.name}: {states_line(row)}"
    yield ""
    yield from filter(None, (unrecognised(report),))
    yield from _finding_blocks(report)
    skipped = skipped_by_reason(report)
    if skipped:
        yield ""
        yield "could not look:"
        yield from (f"  {reason} ({', '.join(codes)})" for reason, codes in skipped)
    if corrected is not None:
        yield ""
        yield from _corrected_lines(corrected, tuple(remaining), probed=report.verdict is not None)


def probed_lines(report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()) -> Iterator[str]:
    """What was seen of the job, then the findings."""
    from mgpu_doctor.render.probe import unexplained, unlooked

    yield from _seen_lines(report)
    mystery = unexplained(report)
    if mystery is None:
        yield from _finding_blocks(report)
    else:
        yield from (*(f"mgpu-doctor: {line}" for line in incomplete_lines(report)), mystery)
    yield from filter(None, (unlooked(report),))
    if corrected is not None:
        yield ""
        yield from _corrected_lines(corrected, tuple(remaining), probed=True)


def _seen_lines(report: Report) -> Iterator[str]:
    if report.verdict is not None:
        from mgpu_doctor.render.probe_plain import probe_lines

        yield from probe_lines(report)


def lint_lines(report: Report) -> Iterator[str]:
    """The findings by place, then a summary."""
    yield from _finding_blocks(report)


def logs_lines(report: Report) -> Iterator[str]:
    """What was read, then the findings, then a summary."""
    yield from head_lines(report)
    yield from _finding_blocks(report)


def command_lines(report: Report) -> Iterator[str]:
    """The commands that were recognised, one line each."""
    for launch in report.case.launches:
        story = tell(launch, report.case.facts)
        processes = next(fact.value for fact in story.facts if fact.label == "processes")
        yield f"{story.place}: " + " > ".join(step.name for step in story.steps) + f" (processes: {processes})"


def _map_lines(devices: DeviceMap) -> Iterator[str]:
    if not devices.rows:
        return
    yield f"  devices: {map_note(devices)}"
    for row in device_words(devices):
        known = (("", row.model), ("", row.uuid), ("PCI ", row.pci), ("CUDA ", row.cuda))
        parts = [label + text for label, text in known if text != "?"]
        parts.append(row.visible if row.visible != "?" else "visibility unknown")
        parts += [f"rank {row.ranks}"] if row.ranks else []
        parts += [row.used] if row.used else []
        yield f"  GPU {row.number}: {', '.join(parts)}"


def _story_lines(story: Story, why: str | None) -> Iterator[str]:
    yield f"{story.place}:"
    for depth, step in enumerate(story.steps):
        yield f"  {'  ' * depth}{step.name} [{step.role}] {step.does}"
    for fact in story.facts:
        yield f"  {fact.label}: {fact.value}" + (f" ({fact.origin})" if fact.origin else "")
    if story.no_ranks is not None:
        yield f"  ranks: unknown: {story.no_ranks}"
    for row in story.ranks:
        node = f"node {row.node} " if story.several_nodes and row.node else ""
        device = " ".join(part for part in (row.physical, row.name, row.uuid) if part not in ("", "none"))
        yield f"  rank {row.rank}: {node}{row.visible}" + (f" = {device}" if device else "")
    if why is not None:
        yield f"  {why}"
    for note in story.notes:
        yield f"  note: {note}"


def _finding_blocks(report: Report) -> Iterator[str]:
    for finding in in_reading_order(report):
        yield f"{place(finding)}: {finding.severity.value} {finding.code} {finding.slug}: {one_line(finding.message)}"
        if finding.location is not None:
            yield from _excerpt_lines(finding.location)
        for item in finding.evidence:
            yield f"    seen: {_evidence_text(item.text, item.location)}"
        for item in finding.related:
            yield f"    see: {_evidence_text(item.text, item.location)}"
        if finding.fix is not None:
            yield from _fix_lines("fix", finding.fix)
        for fix in finding.alternatives:
            yield from _fix_lines("or", fix)
    yield from (f"mgpu-doctor: {line}" for line in incomplete_lines(report))
    accepted = f", {len(report.suppressed)} accepted by comments" if report.suppressed else ""
    yield count_line(report.findings) + accepted


def _excerpt_lines(location: Location) -> Iterator[str]:
    for line in excerpt(location, _WIDTH):
        yield f"    {line.text}"
        if line.carets:
            yield f"    {line.carets}"


def _evidence_text(text: str, location: Location | None) -> str:
    return one_line(text) + (f" ({one_line(str(location))})" if location is not None else "")


def _fix_lines(label: str, fix: Fix) -> Iterator[str]:
    yield f"    {label}: {one_line(fix.title)}"
    yield from (f"      $ {one_line(command)}" for command in fix.commands)


def _corrected_lines(corrected: str, remaining: tuple[Finding, ...], *, probed: bool = False) -> Iterator[str]:
    yield "corrected command:"
    yield shown(corrected).strip("\n")
    yield verdict_on(corrected, remaining, probed=probed)


def verdict_on(corrected: str, remaining: tuple[Finding, ...], *, probed: bool = False) -> str:
    """What a second look at the corrected command says; it is never ``probed`` again."""
    masked = "; put your own secret back in place of the asterisks" if mask(corrected) != corrected else ""
    if not remaining:
        doubt = "; whether it works, another probe can tell" if probed else ""
        return f"checked again: nothing left{doubt}{masked}"
    names = ", ".join(dict.fromkeys(f"{finding.code} {finding.slug}" for finding in remaining))
    return f"checked again: {count_line(remaining)} left for you to decide: {names}{masked}"
