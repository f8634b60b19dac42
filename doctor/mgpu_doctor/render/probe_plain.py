"""A probe as plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.verdict import Comparison, Verdict
from mgpu_doctor.render import probe
from mgpu_doctor.render.clean import one_line

_AGREES = {True: "as promised", False: "not as promised", None: ""}


def probe_lines(report: Report) -> Iterator[str]:
    """The verdict first, then promised against measured, then the measurements."""
    observation, verdict = report.case.observation, report.verdict
    if observation is None or verdict is None:
        return
    yield f"verdict: {verdict.word}: {one_line(verdict.sentence)}"
    if observation.command:
        yield f"ran: {probe.command_line(observation)}"
    if circumstances := probe.circumstances(observation):
        yield f"  {', '.join(circumstances)}"
    yield from _promises(verdict)
    yield from _measurements(observation)
    for label, text in probe.model_lines(report):
        yield f"  {label}: {text}"
    for line in probe.last_output(report):
        yield f"  output: {line}"
    yield ""


def _promises(verdict: Verdict) -> Iterator[str]:
    for line in probe.comparisons(verdict):
        yield f"  {line.subject}: {_compared(line)}"


def _compared(line: Comparison) -> str:
    says = f" ({_AGREES[line.agree]})" if line.agree is not None else ""
    return f"promised {one_line(line.promised)}, measured {one_line(line.measured)}{says}"


def _measurements(observation: Observation) -> Iterator[str]:
    for name, device in probe.device_lines(observation):
        yield f"  {name}: {device}"
    for row in probe.timings(observation):
        alone = "not measured" if row.alone is None else f"{row.alone:.2f} ms"
        together = "not measured" if row.together is None else f"{row.together:.2f} ms"
        factor = f" ({row.factor:.1f} times)" if row.factor is not None else ""
        yield f"  {row.name}: alone {alone}, together {together}{factor}"
    total = probe.sum_line(observation)
    if total is not None:
        yield f"  all_reduce: {total}"
    for way in probe.ways(observation):
        between = f" (GPU {way.devices})" if way.devices else ""
        known = [f"peer access {way.peer}"] if way.peer != "?" else []
        known += [f"transport {way.transport}"] if way.transport != "?" else []
        known += [f"{way.speed:.1f} GiB/s"] if way.speed is not None else []
        yield f"  link {way.ranks}{between}: {', '.join(known) or 'not known'}"
    for step in probe.steps(observation):
        took = f", {step.seconds:.1f} s" if step.seconds is not None else ""
        yield f"  stage {step.name}: {step.state}{took}" + (f": {step.detail}" if step.detail else "")
    for note in probe.notes(observation):
        yield f"  note: {note}"
