"""A probe on a terminal: the verdict, promised against measured, and small pictures of what was measured."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.verdict import BROKEN, COPIES, CPU, MULTI, SHARED, SINGLE, UNKNOWN, Verdict
from mgpu_doctor.render import probe
from mgpu_doctor.render.clean import one_line

_COLOURS = dict.fromkeys((MULTI, SINGLE), "green") | dict.fromkeys((SHARED, COPIES, BROKEN), "red")
_COLOURS.update({CPU: "cyan", UNKNOWN: "yellow"})
_MARKS = {True: Text("✓", "green"), False: Text("✗", "red"), None: Text(" ")}
_BAR = 24
"""Cells of the longest bar."""

_SHORTEST_BAR = 4
"""Cells below which a bar shows nothing and is left out."""

_CONTENDED = 1.5
"""Together over alone from which a time is shown in red."""

_NARROW = 60
"""Terminal columns below which bars and columns that others can be told from are left out."""


def print_probe(console: Console, report: Report) -> None:
    """Everything that was seen; nothing when no job was run."""
    observation, verdict = report.case.observation, report.verdict
    if observation is None or verdict is None:
        return
    _print_verdict(console, observation, verdict)
    _print_promises(console, verdict)
    _print_placement(console, observation, report.case.facts)
    _print_model(console, report)
    _print_timings(console, observation)
    _print_links(console, observation)
    _print_steps(console, observation)
    _print_output(console, report)


def colour_of(verdict: Verdict) -> str:
    """Green only where the run is what it was promised to be."""
    if verdict.as_promised is False and _COLOURS[verdict.word] != "red":
        return "red"
    return _COLOURS[verdict.word]


def _print_verdict(console: Console, observation: Observation, verdict: Verdict) -> None:
    colour = colour_of(verdict)
    head = Text(f" {verdict.word} ", f"bold reverse {colour}")
    head.append(f" {probe.MEANING[verdict.word]}", f"not reverse bold {colour}")
    console.print(head)
    sentence = one_line(verdict.sentence)
    console.print(Padding(Text(sentence[:1].upper() + sentence[1:].rstrip(".") + "."), (0, 0, 0, 2)))
    details = Text(style="dim")
    if observation.command:
        details.append(probe.command_line(observation))
    around = probe.circumstances(observation)
    if around:
        details.append(("\n" if observation.command else "") + ", ".join(around))
    for note in probe.notes(observation):
        details.append(f"\nnote: {note}")
    console.print(Padding(details, (0, 0, 0, 2)))
    console.print()


def _print_promises(console: Console, verdict: Verdict) -> None:
    rows = probe.comparisons(verdict)
    if not rows:
        return
    table = _table("", "", "promised", "measured")
    for row in rows:
        promised, measured = one_line(row.promised), one_line(row.measured)
        if console.width < _NARROW and " (" in promised and " (" in measured:
            promised, measured = promised.partition(" (")[0], measured.partition(" (")[0]
        mark, style = _MARKS[row.agree], "red" if row.agree is False else ""
        table.add_row(mark, Text(row.subject), Text(promised, "dim"), Text(measured, style))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print()


def _print_placement(console: Console, observation: Observation, facts: Facts) -> None:
    seen = probe.placement(observation, facts)
    if seen is None or len(observation.ranks) < 2:
        _print_fates(console, observation)
        return
    width = max(len(name) for name in seen.columns) + 1
    names = max(len(seat.name) for seat in seen.seats)
    if len(seen.seats) > probe.MOST_RANKS or names + 2 + width * len(seen.columns) > console.width - 4:
        _print_list(console, observation)
        return
    console.print(Text("Ranks and GPUs", "bold"))
    head = Text(" " * (names + 2), "dim")
    for number, name in enumerate(seen.columns):
        head.append(name.rjust(width), "dim strike" if number in seen.idle else "bold")
    console.print(Padding(head, (0, 0, 0, 2)), soft_wrap=False)
    for seat in seen.seats:
        line = Text(seat.name.ljust(names + 2))
        for number in range(len(seen.columns)):
            line.append(*_cell(seat, number, width))
        console.print(Padding(line, (0, 0, 0, 2)))
    console.print(Padding(Text(_legend(seen), "dim"), (0, 0, 0, 2)))
    for fate in probe.fates(observation):
        console.print(Padding(Text(fate, "red"), (0, 0, 0, 2)))
    console.print()


def _cell(seat: probe.Seat, number: int, width: int) -> tuple[str, str]:
    if seat.column == number:
        return ("■" if seat.shared else "●").rjust(width), "bold red" if seat.shared else "bold green"
    if seat.promised == number:
        return "○".rjust(width), "yellow"
    return "·".rjust(width), "dim"


def _legend(seen: probe.Placement) -> str:
    parts = ["● works there"] if any(seat.column is not None and not seat.shared for seat in seen.seats) else []
    if any(seat.shared for seat in seen.seats):
        parts.append("■ shared with another rank")
    if any(seat.promised not in (None, seat.column) for seat in seen.seats):
        parts.append("○ was promised there")
    if seen.idle:
        parts.append("struck out: held by nobody")
    return ", ".join(parts)


def _print_model(console: Console, report: Report) -> None:
    lines = probe.model_lines(report)
    for label, text in lines:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="dim", width=9)
        grid.add_column(ratio=1)
        grid.add_row(label, Text(text))
        console.print(Padding(grid, (0, 0, 0, 2)))
    if lines:
        console.print()


def _print_fates(console: Console, observation: Observation) -> None:
    """Only what went wrong, where there is no picture to draw."""
    lines = probe.fates(observation)
    for line in lines:
        console.print(Padding(Text(line, "red"), (0, 0, 0, 2)))
    if lines:
        console.print()


def _print_list(console: Console, observation: Observation) -> None:
    console.print(Text("Ranks and GPUs", "bold"))
    table = _table("rank", "where")
    for name, device in probe.device_lines(observation):
        table.add_row(Text(name), Text(device))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print()


def _print_timings(console: Console, observation: Observation) -> None:
    rows = probe.timings(observation)
    if not rows:
        return
    if all(row.together is None for row in rows):
        times = ", ".join(f"{row.name} {row.alone:.2f} ms" for row in rows if row.alone is not None)
        console.print(Padding(Text.assemble(("work alone  ", "dim"), times), (0, 0, 0, 2)))
        console.print()
        return
    longest = max(value for row in rows for value in (row.alone, row.together) if value is not None)
    names = max(len(row.name) for row in rows)
    room = min(_BAR, (console.width - names - 40) // 2)
    console.print(Text("The same work alone, and with all at work", "bold"))
    bars = [""] if room >= _SHORTEST_BAR else []
    table = _table("", "alone", *bars, "together", *bars, "")
    for row in rows:
        slow = observation.on_gpu and row.factor is not None and row.factor >= _CONTENDED
        cells = [Text(row.name)]
        for value, style in ((row.alone, "cyan"), (row.together, "red" if slow else "green")):
            cells.append(Text("-" if value is None else f"{value:.2f} ms", justify="right"))
            cells += [Text(_bar(value, longest, room), style)] if bars else []
        cells.append(Text("" if row.factor is None else f"×{row.factor:.1f}", "bold red" if slow else "dim"))
        table.add_row(*cells)
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print()


def _bar(value: float | None, longest: float, room: int) -> str:
    if value is None or value <= 0 or longest <= 0:
        return ""
    eighths = max(1, round(value / longest * room * 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _print_links(console: Console, observation: Observation) -> None:
    rows = probe.ways(observation)
    total = probe.sum_line(observation)
    if not rows and total is None:
        return
    console.print(Text("Between the ranks", "bold"))
    if total is not None:
        wrong = "instead of" in total
        console.print(Padding(Text.assemble(("all_reduce  ", "dim"), (total, "red" if wrong else "")), (0, 0, 0, 2)))
    if rows:
        _print_ways(console, rows)
    console.print()


def _print_ways(console: Console, rows: tuple[probe.Way, ...]) -> None:
    fastest = max((row.speed for row in rows if row.speed is not None), default=0.0)
    room = min(_BAR, max(0, console.width - 58)) if console.width >= _NARROW else 0
    columns = ["ranks"]
    optional = {
        "GPUs": any(row.devices for row in rows),
        "peer access": any(row.peer != "?" for row in rows) and console.width >= _NARROW,
        "way": any(row.transport != "?" for row in rows),
    }
    columns += [name for name, wanted in optional.items() if wanted]
    columns += ["GiB/s", *([""] if room and fastest else [])]
    table = _table(*columns)
    for row in rows:
        cells = [Text(row.ranks)]
        cells += [Text(row.devices)] if optional["GPUs"] else []
        cells += [Text(row.peer, "yellow" if row.peer == "no" else "")] if optional["peer access"] else []
        cells += [Text(row.transport)] if optional["way"] else []
        cells.append(Text("?" if row.speed is None else f"{row.speed:.1f}", justify="right"))
        if room and fastest:
            cells.append(Text(_bar(row.speed, fastest, room), "cyan"))
        table.add_row(*cells)
    console.print(Padding(table, (0, 0, 0, 2)))


def _print_steps(console: Console, observation: Observation) -> None:
    rows = probe.steps(observation)
    if not rows:
        return
    styles = {"ok": "dim", "skipped": "dim", "failed": "bold red", "hung": "bold red"}
    line = Text("stages", "dim")
    for row in rows:
        text = _step(row)
        if line.cell_len + len(text) + 4 > console.width:
            console.print(Padding(line, (0, 0, 0, 2)))
            line = Text("      ")
        line.append(f"  {text}", styles.get(row.state, "bold red"))
    console.print(Padding(line, (0, 0, 0, 2)))
    for (detail, state), names in _details(rows, alone=len(observation.ranks) == 1).items():
        console.print(Padding(Text(f"{', '.join(names)}: {detail}", styles.get(state, "")), (0, 0, 0, 2)))
    console.print()


def _details(rows: tuple[probe.Step, ...], *, alone: bool) -> dict[tuple[str, str], list[str]]:
    """What is said of stages, with the stages that it is said of; why one process meets nobody needs no words."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.detail and not (alone and row.state == "skipped"):
            found.setdefault((row.detail, row.state), []).append(row.name)
    return found


def _step(row: probe.Step) -> str:
    sign = {"ok": "✓", "skipped": "-"}.get(row.state, "✗")
    took = f" {row.seconds:.1f} s" if row.seconds is not None and row.state != "skipped" else ""
    return f"{sign} {row.name}" + ("" if row.state in ("ok", "skipped") else f" {row.state}") + took


def _print_output(console: Console, report: Report) -> None:
    lines = probe.last_output(report)
    if not lines:
        return
    console.print(Text("The last lines of its output", "bold"))
    for line in lines:
        console.print(Padding(Text(line, "dim", overflow="fold"), (0, 0, 0, 2)))
    console.print()


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
