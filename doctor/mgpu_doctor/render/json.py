"""The report as JSON, for programs. The form is described in docs/json.md and versioned by ``SCHEMA_VERSION``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mgpu_doctor import __version__
from mgpu_doctor.model.command import Command, Variable, Word
from mgpu_doctor.model.device_map import DeviceMap
from mgpu_doctor.model.facts import GpuProcess
from mgpu_doctor.model.finding import Evidence, Finding, Fix, OutcomeKind
from mgpu_doctor.model.known import Setting, Unknown
from mgpu_doctor.model.launch import Launch, Layer, Option, VisibleDevices
from mgpu_doctor.model.log import LogReading
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.source import Location, Span
from mgpu_doctor.model.verdict import Verdict
from mgpu_doctor.render.clean import is_private, mask

if TYPE_CHECKING:
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.rule import Example, Rule

SCHEMA_VERSION = 1

# JSON leaves these alone, a terminal does not: C1 controls, and those that turn the writing direction.
_ESCAPED = {
    code: f"\\u{code:04x}"
    for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}

_COUNT_OPTIONS = ("nproc_per_node", "num_processes", "num_gpus", "ntasks", "np", "n")
_PORT_OPTIONS = ("main_process_port", "master_port")
_COUNT_VARIABLES = ("NPROC_PER_NODE",)
_PORT_VARIABLES = ("MASTER_PORT",)
_SHELLS = frozenset({"bash", "sh", "zsh"})


def dump(document: Mapping[str, Any], *, pretty: bool = False) -> str:
    """A document as text, ending in a newline: one line for programs, indented (and slower) for people."""
    text = json.dumps(document, ensure_ascii=False, indent=2 if pretty else None, default=str).translate(_ESCAPED)
    # A lone surrogate has no UTF-8 form.
    return text.encode("utf-8", "replace").decode() + "\n"


def report_document(
    report: Report, *, commands: bool = False, corrected: str | None = None, remaining: Iterable[Finding] = ()
) -> dict[str, Any]:
    """A report as plain data.

    ``commands`` adds what each command would do. ``corrected`` is the corrected
    command and ``remaining`` what is still found in it.
    """
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mgpu-doctor", "version": __version__},
        "mode": report.mode,
        "facts": report.case.facts.origin,
        "findings": [finding_document(finding) for finding in report.findings],
    }
    if commands:
        document["commands"] = [
            {**launch_document(launch), "memory": _memory(report.case, launch)} for launch in report.case.launches
        ]
    if report.verdict is not None:
        document["verdict"] = verdict_document(report.verdict)
    if report.maps:
        document["device_maps"] = [device_map_document(devices) for devices in report.maps]
    if corrected is not None:
        document["corrected"] = {
            "text": mask(corrected),
            "remaining": [finding_document(finding) for finding in remaining],
        }
    if report.mode == "logs":
        from mgpu_doctor.render.logs import smi_document

        document["logs"] = [log_document(reading) for reading in report.case.logs]
        document["smi"] = [smi_document(smi) for smi in report.case.smi]
    document["suppressed"] = [
        {**finding_document(entry.finding), "reason": entry.reason} for entry in report.suppressed
    ]
    for key, kind in (("skipped", OutcomeKind.SKIPPED), ("crashed", OutcomeKind.CRASHED)):
        document[key] = [
            {"code": o.code, "slug": o.slug, "reason": o.reason, "distribution": o.distribution}
            for o in report.outcomes_of(kind)
        ]
    document["problems"] = [{"kind": p.kind, "subject": p.subject, "message": p.message} for p in report.problems]
    document["unread"] = list(report.unread)
    document["summary"] = _summary(report)
    return document


def _memory(case: Case, launch: Launch) -> dict[str, Any] | None:
    from mgpu_doctor.memory.model_used import names_model

    if not names_model(launch):
        return None
    from mgpu_doctor.render.memory import memory_document

    return memory_document(case, launch)


def _summary(report: Report) -> dict[str, Any]:
    severities = [finding.severity.value for finding in report.findings]
    kinds = [outcome.kind for outcome in report.outcomes]
    return {
        "error": severities.count("error"),
        "warning": severities.count("warning"),
        "advice": severities.count("advice"),
        "suppressed": len(report.suppressed),
        "commands": len(report.case.launches),
        "checks": len(kinds),
        "ok": kinds.count(OutcomeKind.OK),
        "skipped": kinds.count(OutcomeKind.SKIPPED),
        "crashed": kinds.count(OutcomeKind.CRASHED),
        "fail_on": report.fail_on,
        "exit_code": report.exit_code,
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict; ``agree`` and ``as_promised`` are null where one of the two sides is not known."""
    return {
        "word": verdict.word,
        "sentence": mask(verdict.sentence),
        "stage": verdict.stage,
        "as_promised": verdict.as_promised,
        "comparisons": [
            {"subject": line.subject, "promised": line.promised, "measured": line.measured, "agree": line.agree}
            for line in verdict.comparisons
        ],
    }


def device_map_document(devices: DeviceMap) -> dict[str, Any]:
    """Which GPU is which; what is not known is null."""
    return {
        "visible": devices.visible,
        "order": devices.order,
        "ranks_without_device": list(devices.without_device),
        "gpus": [
            {
                "index": row.gpu.index,
                "uuid": _known(row.gpu.uuid),
                "pci_bus_id": _known(row.gpu.pci_bus_id),
                "name": _known(row.gpu.name),
                "cuda_index": _known(row.cuda_index),
                "visible_index": None if row.visible_index is None else _known(row.visible_index),
                "ranks": list(row.ranks),
                "memory_gib": _known(row.gpu.memory_gib),
                "memory_used_gib": _known(row.gpu.memory_used_gib),
                "processes": None if row.holders is None else [_process(holder) for holder in row.holders],
            }
            for row in devices.rows
        ],
    }


def _process(holder: GpuProcess) -> dict[str, Any]:
    return {
        "pid": _known(holder.pid),
        "command": _known(holder.command),
        "user": _known(holder.user),
        "memory_gib": _known(holder.memory_gib),
    }


def log_document(reading: LogReading) -> dict[str, Any]:
    """What was read of one log."""
    from mgpu_doctor.render.logs import parallel_document

    return {
        "name": reading.name,
        "lines": reading.lines,
        "bytes": reading.bytes,
        "failed": reading.failed,
        "first_failed_rank": reading.first_failed_rank,
        "parallel": parallel_document(reading.parallel),
        "errors": [{"line": e.number, "rank": e.rank, "text": mask(e.text)} for e in reading.errors],
    }


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding; path and places are null for a fact of the machine, which ``subject`` then names."""
    return {
        "code": finding.code,
        "slug": finding.slug,
        "severity": finding.severity.value,
        "title": finding.title,
        "message": mask(finding.message),
        **_place(finding.location),
        "subject": finding.subject,
        "evidence": [_evidence(item) for item in finding.evidence],
        "related": [_evidence(item) for item in finding.related],
        "fix": _fix(finding.fix) if finding.fix is not None else None,
        "alternatives": [_fix(fix) for fix in finding.alternatives],
    }


def _place(location: Location | None) -> dict[str, Any]:
    if location is None:
        return dict.fromkeys(("path", "line", "column", "end_line", "end_column"))
    start = location.source.position(location.span.start)
    end = location.source.position(location.span.end)
    return {
        "path": location.source.name,
        "line": start.line,
        "column": start.column,
        "end_line": end.line,
        "end_column": end.column,
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {"text": mask(evidence.text), **_place(evidence.location)}


def _fix(fix: Fix) -> dict[str, Any]:
    edits = [
        {
            **_place(Location(edit.source, edit.span)),
            "start": edit.span.start,
            "end": edit.span.end,
            "replacement": edit.replacement,
        }
        for edit in fix.edits
    ]
    return {"title": fix.title, "safe": fix.safe, "edits": edits, "commands": list(fix.commands)}


def launch_document(launch: Launch) -> dict[str, Any]:
    """What one command would do.

    ``launcher``, ``launcher_args`` list the layers that somebody typed, outermost first; words are as
    written, quotes removed and variables unexpanded. ``nproc`` and ``port`` are as written too
    when a word gives them, numbers otherwise, null when unknown.
    """
    source, place = launch.command.source, Location(launch.command.source, _span(launch.command)).in_file
    typed = [layer for layer in launch.layers if not layer.implied]
    names = [layer.launcher for layer in typed]
    commands = [_words(layer.command_words) for layer in typed]
    arguments = [_words(layer.argument_words) for layer in typed]
    target, rest = _target(launch), _words(launch.target.argument_words)
    script = next((number for number, word in enumerate(rest) if not word.startswith("-")), None)
    if isinstance(target, dict) and target.get("command") in _SHELLS and script is not None:
        # ``bash run.sh``: the shell starts the script as an interpreter does.
        names.append(str(target["command"]))
        commands.append([str(target["command"])])
        arguments.append(rest[:script])
        target, rest = rest[script], rest[script + 1 :]
    return {
        "path": source.name,
        "line_start": place.source.position(place.span.start).line,
        "line_end": place.source.position(max(place.span.start, place.span.end - 1)).line,
        "launcher": names,
        "launcher_cmd": commands,
        "launcher_args": arguments,
        "target": target,
        "target_args": rest,
        "framework": launch.target.framework,
        "env": {
            v.name: _value(v) for v in launch.command.environment if v.scope != "inherited" and v.value is not None
        },
        "nproc": _count(launch),
        "port": _port(launch),
        "devices": _devices(launch.visible),
        "devices_before": _devices(launch.visible_before),
        "processes_per_node": _setting(launch.processes_per_node),
        "nodes": _setting(launch.nodes),
        "world_size": _setting(launch.world_size),
        "engine": _engine(launch),
        "purpose": _setting(launch.purpose),
        "spread": _setting(launch.spread),
        "group": _setting(launch.groups),
        "ranks": _ranks(launch),
        "layers": [_layer(layer) for layer in launch.layers],
        "notes": list(launch.notes),
    }


def _span(command: Command) -> Span:
    """Where a command is run: with the wrapper in front of it; where the wrapper is when its text was set above."""
    written = [wrapper for wrapper in command.wrappers if wrapper.words]
    if not written:
        return command.span
    return Span(written[0].span.start, max(command.span.end, written[-1].span.end))


def _words(words: Iterable[Word]) -> list[str]:
    return [mask(word.written) for word in words]


def _value(variable: Variable) -> str:
    value = variable.value
    written = value.written if value is not None else ""
    return "*" * len(written) if is_private(variable.name) else mask(written)


def _target(launch: Launch) -> str | dict[str, str | None] | None:
    target = launch.target
    value = target.word.written if target.word is not None else target.value
    if target.kind == "module":
        return {"module": value}
    if target.kind == "command":
        # ``llamafactory-cli train``: the command is a layer of its own, so that the sub-command is what it runs.
        is_layer = any(target.value == layer.launcher or target.word in layer.command_words for layer in launch.layers)
        return {"command": target.subcommand if is_layer and target.subcommand else value}
    if target.kind == "script":
        return value
    return None


def _count(launch: Launch) -> str | int | None:
    """The number of processes as the option says it (all machines' for accelerate), else what it comes to."""
    return _as_written(launch, _COUNT_OPTIONS, _COUNT_VARIABLES) or launch.processes_per_node.known


def _port(launch: Launch) -> str | int | None:
    written = _as_written(launch, _PORT_OPTIONS, _PORT_VARIABLES)
    if written is not None:
        return written
    endpoint = _typed(launch, ("rdzv_endpoint",))
    if endpoint is not None and ":" in endpoint:
        return _number(endpoint.rsplit(":", 1)[1])
    port = launch.rendezvous.port if launch.rendezvous is not None else None
    return port.known if port is not None else None


def _as_written(launch: Launch, options: tuple[str, ...], variables: tuple[str, ...]) -> str | int | None:
    """A typed option's value, or that of the variable from which a launcher makes the option for the one it starts."""
    typed = _typed(launch, options)
    if typed is not None:
        return _number(typed)
    if any(layer.implied for layer in launch.layers):
        for name in variables:
            variable = launch.command.variable(name)
            if variable is not None and variable.value is not None:
                return _number(variable.value.written)
    return None


def _typed(launch: Launch, names: tuple[str, ...]) -> str | None:
    """The value of the innermost typed option that fills one of these, as written."""
    for layer in reversed(launch.layers):
        for name in names:
            option = layer.option(name)
            if option is not None and option.values and not layer.implied:
                return _written(layer, option)
    return None


def _written(layer: Layer, option: Option) -> str:
    value = option.values[0]
    for word in layer.argument_words:
        before, equals, after = word.written.partition("=")
        if equals and before == option.flag and word.span.contains(value.span):
            return after
    return value.written


def _number(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def _setting(setting: Setting[Any]) -> dict[str, Any]:
    value, origin = setting.value, setting.origin
    out: dict[str, Any] = {"value": None if isinstance(value, Unknown) else value}
    if isinstance(value, Unknown):
        out["unknown"] = value.reason
    out["origin"] = {"kind": origin.kind, "detail": origin.detail}
    return out


def _engine(launch: Launch) -> dict[str, Any]:
    out = _setting(launch.engine)
    engine = launch.engine.known
    if engine is not None:
        out["value"] = engine.name
        out["stage"] = None if isinstance(engine.stage, Unknown) else engine.stage
    return out


def _devices(setting: Setting[VisibleDevices]) -> dict[str, Any]:
    devices = setting.known
    out = _setting(setting)
    if devices is not None:
        out["value"] = "all" if devices.all else list(devices.entries)
        out["physical"] = [index if isinstance(index, int) else None for index in devices.physical]
    return out


def _ranks(launch: Launch) -> list[dict[str, Any]] | None:
    if isinstance(launch.ranks, Unknown):
        return None
    return [
        {
            "rank": rank.rank,
            "local_rank": rank.local_rank,
            "node": rank.node,
            "visible_index": _known(rank.visible_index),
            "physical_index": _known(rank.physical_index),
            "uuid": _known(rank.uuid),
        }
        for rank in launch.ranks
    ]


def _known(value: float | str | Unknown) -> float | str | None:
    return None if isinstance(value, Unknown) else value


def _layer(layer: Layer) -> dict[str, Any]:
    release = layer.release
    return {
        "launcher": layer.launcher,
        "implied": layer.implied,
        "release": None
        if release is None
        else {
            "package": release.package,
            "version": release.version,
            "why": release.why,
            "certain": release.certain,
        },
        "options": [
            {"name": option.dest, "flag": option.flag, "values": _words(option.values)} for option in layer.options
        ],
        "config": layer.config.name if layer.config is not None else None,
        "opaque": layer.opaque,
    }


def rule_document(rule: Rule, distribution: str) -> dict[str, Any]:
    """A rule with all that its page says."""
    return {
        "code": rule.code,
        "slug": rule.slug,
        "title": rule.title,
        "severity": rule.severity.value,
        "summary": rule.summary,
        "why": rule.why,
        "fix": rule.fix,
        "fixable": rule.fixable,
        "distribution": distribution,
        "bad": [_example(example) for example in rule.bad],
        "good": [_example(example) for example in rule.good],
        "sources": [{"where": s.where, "fact": s.fact, "ran": s.ran} for s in rule.sources],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "title": example.title,
        "command": example.command,
        "files": dict(example.files),
        "facts": dict(example.facts) if example.facts is not None else None,
        "lint": list(example.lint),
        "log": example.log,
        "observation": dict(example.observation) if example.observation is not None else None,
    }
