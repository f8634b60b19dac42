"""The report on a terminal. Everything that comes from the user is put into Text objects, never read as markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mgpu_doctor.model.device_map import DeviceMap
from mgpu_doctor.model.finding import Evidence, Finding, Fix, Severity
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.rule import AnyCheck
from mgpu_doctor.model.source import Location
from mgpu_doctor.render.clean import one_line, shown
from mgpu_doctor.render.devices import DeviceWords, device_words, map_note, mixed
from mgpu_doctor.render.excerpt import excerpt
from mgpu_doctor.render.logs import head_lines
from mgpu_doctor.render.machine import machine_lines
from mgpu_doctor.render.plain import verdict_on
from mgpu_doctor.render.story import Story, basis, tell, why_unknown
from mgpu_doctor.render.summary import (
    FamilyRow,
    count_line,
    family,
    family_rows,
    in_reading_order,
    incomplete_lines,
    place,
    searched,
    skipped_by_reason,
    states_line,
    unrecognised,
)

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.ADVICE: "cyan"}
_ROLES = {"launches": "green", "courier": "dim", "computes": "bold magenta"}
_WIDE = 64
"""Terminal columns from which GPU models and UUIDs have room."""

_MAP_WIDE = 100
"""Terminal columns from which the map of the GPUs has room for PCI addresses."""

_TABLE = 90
"""Terminal columns from which the catalogue has room for a table."""

_SIGNS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.ADVICE: "i"}


def print_explanation(
    console: Console, report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()
) -> None:
    """What would run, what is wrong with it, and the corrected command."""
    alone = len(report.case.launches) == 1
    for number, launch in enumerate(report.case.launches):
        devices = report.maps[number] if number < len(report.maps) else None
        story = tell(launch, report.case.facts, report.case)
        _print_story(console, story, why_unknown(launch), devices, alone=alone)
    if not report.case.launches:
        console.print(Text("No launch command is recognised in this text.", "yellow"))
        console.print()
    _print_basis(console, report)
    _print_findings(console, report)
    if corrected is not None:
        _print_corrected(console, corrected, tuple(remaining))


def print_check(
    console: Console, report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()
) -> None:
    """What was seen of the job, the machine, how each family of checks went, then the findings, worst first."""
    _print_seen(console, report)
    _print_machine(console, report)
    if len(report.maps) == 1 and report.maps[0].rows:
        _print_map(console, report.maps[0])
    _print_families(console, family_rows(report))
    nothing = unrecognised(report)
    if nothing is not None:
        console.print(Text(nothing[:1].upper() + nothing[1:] + ".", "yellow"))
    _print_findings(console, report)
    _print_skipped(console, report)
    if corrected is not None:
        _print_corrected(console, corrected, tuple(remaining), probed=report.verdict is not None)


def print_probed(
    console: Console, report: Report, corrected: str | None = None, remaining: Iterable[Finding] = ()
) -> None:
    """What was seen of the job, then the findings."""
    from mgpu_doctor.render.probe import unexplained, unlooked

    _print_seen(console, report)
    mystery = unexplained(report)
    if mystery is None:
        _print_findings(console, report)
    else:
        for line in (*(f"✗ {line}" for line in incomplete_lines(report)), mystery):
            console.print(Text(line, "red"))
    skipped = unlooked(report)
    if skipped is not None:
        console.print(Text(skipped, "dim"))
    if corrected is not None:
        _print_corrected(console, corrected, tuple(remaining), probed=True)


def _print_seen(console: Console, report: Report) -> None:
    if report.verdict is not None:
        from mgpu_doctor.render.probe_console import print_probe

        print_probe(console, report)


def print_lint(console: Console, report: Report) -> None:
    """The findings, then how many commands were read."""
    _print_findings(console, report)


def print_logs(console: Console, report: Report) -> None:
    """What was read, then the findings."""
    for line in head_lines(report):
        console.print(Text(line, style="dim" if line.startswith(" ") else ""))
    console.print()
    _print_findings(console, report)


def print_commands(console: Console, report: Report) -> None:
    """The commands that were recognised, and what they would do."""
    for launch in report.case.launches:
        _print_story(console, tell(launch, report.case.facts), why_unknown(launch), None, alone=False)


def print_rules(console: Console, checks: Iterable[AnyCheck]) -> None:
    """The catalogue as a table."""
    stacked = console.width < _TABLE
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in ("code", "rule", "severity"):
        table.add_column(column, no_wrap=True)
    table.add_column("cause", ratio=1)
    for check in checks:
        rule = check.rule
        code = Text(one_line(rule.code), "bold")
        severity = Text(rule.severity.value, _COLOURS[rule.severity])
        cause = one_line(rule.summary) + ("" if check.distribution == "mgpu-doctor" else f" ({check.distribution})")
        if stacked:
            console.print(Text.assemble(code, " ", one_line(rule.slug), " ", severity), soft_wrap=False)
            console.print(Padding(Text(cause), (0, 0, 0, 2)))
        else:
            table.add_row(code, Text(one_line(rule.slug)), severity, Text(cause))
    if not stacked:
        console.print(table)


def _heading(title: str) -> Text:
    return Text(title, "bold")


def _print_story(console: Console, story: Story, why: str | None, devices: DeviceMap | None, *, alone: bool) -> None:
    console.print(_heading("What would run" if alone else f"What would run at {story.place}"))
    console.print(Padding(_layers(story), (0, 0, 0, 2)))
    console.print()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(ratio=1)
    for fact in story.facts:
        value = Text(fact.value)
        if fact.origin:
            value.append(f"  {fact.origin}", "dim")
        facts.add_row(fact.label, value)
    for note in story.notes:
        facts.add_row("note", Text(note))
    console.print(Padding(facts, (0, 0, 0, 2)))
    console.print()
    if devices is not None and devices.rows and story.no_ranks is None and not story.several_nodes:
        _print_map(console, devices)
    else:
        _print_ranks(console, story, why)


def _layers(story: Story) -> RenderableType:
    first, *others = story.steps
    tree = Tree(_layer_line(first.name, first.role, first.does), guide_style="dim")
    branch = tree
    for step in others:
        branch = branch.add(_layer_line(step.name, step.role, step.does))
    return tree


def _layer_line(name: str, role: str, does: str) -> Text:
    text = Text()
    text.append(name, _ROLES[role] if role != "courier" else "")
    text.append(f"  {role}", "dim italic")
    text.append(f"  {does}")
    return text


def _print_ranks(console: Console, story: Story, why: str | None) -> None:
    if story.no_ranks is not None:
        console.print(Padding(Text(f"Ranks and GPUs cannot be told: {story.no_ranks}", "yellow"), (0, 0, 0, 2)))
        console.print()
        return
    columns = ["rank", "visible as", "physical"]
    if story.several_nodes:
        columns.insert(1, "node")
    details = console.width >= _WIDE and any(row.name for row in story.ranks)
    table = _table(*columns, *(("model", "UUID") if details else ()))
    for row in story.ranks:
        cells = [Text(row.rank), Text(row.visible), Text(row.physical, "bold")]
        if story.several_nodes:
            cells.insert(1, Text(row.node))
        if details:
            cells += [Text(row.name), Text(row.uuid, "dim")]
        table.add_row(*cells)
    console.print(Padding(table, (0, 0, 0, 2)))
    if why is not None:
        console.print(Padding(Text(why, "dim"), (0, 0, 0, 3)))
    console.print()


def _print_map(console: Console, devices: DeviceMap) -> None:
    """Which GPU is which; what a narrow terminal has no room for is left out."""
    rows = device_words(devices)
    columns: list[tuple[str, str, str]] = [("GPU", "number", "bold")]
    if console.width >= _MAP_WIDE or (mixed(devices) and console.width >= _WIDE):
        columns.append(("model", "model", ""))
    if console.width >= _WIDE:
        columns.append(("UUID", "uuid", "dim"))
    if console.width >= _MAP_WIDE:
        columns += [("PCI", "pci", "dim"), ("CUDA", "cuda", "")]
    columns = [column for column in columns if any(getattr(row, column[1]) != "?" for row in rows)]
    columns.append(("visible", "visible", ""))
    if any(row.ranks for row in rows):
        columns.append(("rank", "ranks", "bold green"))
    if any(row.used for row in rows):
        columns.append(("in use", "used", ""))
    table = _table(*(heading for heading, _, _ in columns))
    for row in rows:
        table.add_row(*(_cell(row, field, style) for _, field, style in columns))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print(Padding(Text(map_note(devices), "dim"), (0, 0, 0, 3)))
    console.print()


def _cell(row: DeviceWords, field: str, style: str) -> Text:
    text = str(getattr(row, field))
    if text in ("hidden", "free", "?"):
        style = "dim"
    elif field == "used":
        style = "yellow"
    return Text(text, style)


def _print_machine(console: Console, report: Report) -> None:
    lines = machine_lines(report.case.facts)
    if not lines:
        _print_basis(console, report)
        return
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(ratio=1, overflow="fold")
    for label, value in lines:
        facts.add_row(label, Text(value))
    for line in basis(report.case)[1:]:
        facts.add_row("judged as", Text(line))
    console.print(_heading(one_line(report.case.facts.origin[:1].upper() + report.case.facts.origin[1:])))
    console.print(Padding(facts, (0, 0, 0, 2)))
    console.print()


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_basis(console: Console, report: Report) -> None:
    lines = basis(report.case)
    text = Text("Reasoned from  ", "dim")
    text.append("; ".join(lines), "dim")
    console.print(text)
    console.print()


def _print_families(console: Console, rows: Iterable[FamilyRow]) -> None:
    table = _table("family", "state", "checks")
    for row in rows:
        if row.crashed:
            state = Text("incomplete", "red")
        elif row.worst is not None:
            state = Text(f"{_SIGNS[row.worst]} {row.worst.value}", _COLOURS[row.worst])
        elif row.ok:
            state = Text("✓ ok", "green")
        else:
            state = Text("? could not look", "dim")
        table.add_row(row.name, state, Text(states_line(row), "dim"))
    console.print(table)
    console.print()


def _print_findings(console: Console, report: Report) -> None:
    for finding in in_reading_order(report):
        console.print(_finding(console, finding))
        console.print()
    for line in incomplete_lines(report):
        console.print(Text(f"✗ {line}", "red"))
    accepted = f", {len(report.suppressed)} accepted by comments" if report.suppressed else ""
    colour = _COLOURS[report.findings[0].severity] if report.findings else "green"
    text = Text()
    text.append(count_line(report.findings), f"bold {colour}")
    text.append(f"{accepted} {searched(report)}", "dim")
    console.print(text)


def _finding(console: Console, finding: Finding) -> Group:
    colour = _COLOURS[finding.severity]
    head = Text()
    head.append(f"{_SIGNS[finding.severity]} {finding.severity.value}", f"bold {colour}")
    head.append(f" {finding.code} {finding.slug}", "bold")
    head.append(f"  {family(finding.code)}", "dim")
    parts: list[RenderableType] = [head, Text(f"  {place(finding)}", "dim", overflow="fold")]
    if finding.location is not None:
        parts += _excerpt(console, finding.location, colour)
    parts.append(Padding(Text(shown(finding.message).strip()), (0, 0, 0, 2)))
    parts += [_labelled("seen", _evidence(item)) for item in finding.evidence]
    parts += [_labelled("see", _evidence(item)) for item in finding.related]
    if finding.fix is not None:
        parts.append(_labelled("fix", _fix(finding.fix), "green"))
    parts += [_labelled("or", _fix(fix), "green") for fix in finding.alternatives]
    return Group(*parts)


def _excerpt(console: Console, location: Location, colour: str) -> list[RenderableType]:
    lines = excerpt(location, max(console.width - 10, 20))
    margin = max(len(str(line.number or "")) for line in lines)
    out: list[RenderableType] = []
    for line in lines:
        number = "" if line.number is None else str(line.number)
        text = Text(f"  {number:>{margin}} │ ", "dim", no_wrap=True, overflow="crop")
        text.append(line.text, "not dim")
        out.append(text)
        if line.carets:
            marks = Text(f"  {'':>{margin}} │ ", "dim", no_wrap=True, overflow="crop")
            marks.append(line.carets, f"not dim bold {colour}")
            out.append(marks)
    return out


def _labelled(label: str, content: Text, colour: str = "dim") -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style=colour, width=4)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(Text(label), content)
    return Padding(grid, (0, 0, 0, 2))


def _evidence(evidence: Evidence) -> Text:
    text = Text(shown(evidence.text).strip())
    if evidence.location is not None:
        text.append(f"  {one_line(str(evidence.location))}", "dim")
    return text


def _fix(fix: Fix) -> Text:
    text = Text(shown(fix.title).strip())
    for command in fix.commands:
        text.append(f"\n$ {one_line(command)}", "bold")
    return text


def _print_skipped(console: Console, report: Report) -> None:
    groups = skipped_by_reason(report)
    if not groups:
        return
    console.print()
    console.print(Text("Could not look", "dim bold"))
    for reason, codes in groups:
        console.print(Padding(Text(f"{', '.join(codes)}: {reason}", "dim"), (0, 0, 0, 2)))


def _print_corrected(console: Console, corrected: str, remaining: tuple[Finding, ...], *, probed: bool = False) -> None:
    console.print()
    console.print(_heading("Corrected command"))
    # Not wrapped and not indented: it is there to be copied.
    console.print(Text(shown(corrected).strip("\n")), soft_wrap=True)
    console.print(Text(verdict_on(corrected, remaining, probed=probed), "yellow" if remaining else "green"))
