"""The straight line: what the user gave → commands → launches, the machine → facts, both → findings.

This is the Python API as well::

    from mgpu_doctor.diagnose import Request, diagnose
    report = diagnose(Request(command="torchrun --nproc-per-node 9 train.py"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mgpu_doctor.errors import InputError, UsageError
from mgpu_doctor.examine import examine
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.command import Command, Script
from mgpu_doctor.model.facts import NO_FACTS, Facts
from mgpu_doctor.model.finding import Finding, Outcome
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.report import Problem, Report
from mgpu_doctor.model.rule import AnyCheck
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.model.verdict import BROKEN
from mgpu_doctor.registry import Registry, load_checks
from mgpu_doctor.settings import Settings, load_settings
from mgpu_doctor.suppress import apply_suppressions

if TYPE_CHECKING:
    from mgpu_doctor.model.device_map import DeviceMap
    from mgpu_doctor.model.knowledge import Knowledge
    from mgpu_doctor.model.observation import Observation
    from mgpu_doctor.model.verdict import Verdict
    from mgpu_doctor.model.workspace import Workspace

THIS_MACHINE = "this machine"
_EMPTY = "the command is empty"
_FOR_INSTANCE = 'for instance: "torchrun --nproc-per-node 2 train.py"'
_EMBEDDING = frozenset({"yaml", "dockerfile", "makefile", "justfile"})
"""Kinds of files in which commands are written in the file's own language."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked.

    ``mode`` is ``check``, ``explain``, ``lint`` or ``probe``. ``command`` is a command line as text,
    ``argv`` one as the shell split it, ``files`` are paths, ``text`` a text with the
    name ``text_name`` (standard input). ``facts`` is ``this machine``, ``none`` or
    a facts file. ``directory`` is where the command would be typed. ``python`` names the
    interpreter whose environment counts. ``select``, ``ignore`` and ``fail_on`` win over the settings file.
    ``observation`` is what was seen of the command when it ran.
    """

    mode: str = "check"
    command: str | None = None
    argv: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    text: str | None = None
    text_name: str = "<stdin>"
    text_kind: str = "shell"
    facts: str | None = None
    directory: str = "."
    python: str | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: str | None = None
    observation: Observation | None = None


def diagnose(
    request: Request, registry: Registry | None = None, observe: Callable[[Case], Observation] | None = None
) -> Report:
    """Everything that can be said about a request.

    ``observe`` runs the job, once commands and machine are known, and says what was seen.

    Raises:
        UsageError: there is nothing to look at, or it contradicts itself.
        InputError: the command, the facts file or the settings cannot be read.
    """
    _require_directory(request.directory)
    settings = _settings(request)
    sources, unread, problems = read_sources(request)
    facts = read_facts(request, settings)
    workspace = _workspace(request, facts)
    scripts = read_scripts(sources, facts, workspace)
    facts = _look_closer(facts, scripts, request)
    knowledge = _knowledge(facts)
    launches = resolve_launches(scripts, facts, knowledge, workspace)
    facts = _look_at_ports(facts, launches)
    mode = "check" if request.mode == "probe" else request.mode
    case = Case(sources, scripts, launches, facts, workspace, knowledge, mode, request.observation)
    if observe is not None:
        case = replace(case, observation=observe(case))
    if registry is None:
        registry = load_checks()
    checks = _selected(registry, settings, case)
    outcomes = _explained(case, checks, examine(case, checks))
    return _report(request, settings, case, outcomes, (*problems, *registry.problems), unread)


def _selected(registry: Registry, settings: Settings, case: Case) -> tuple[AnyCheck, ...]:
    """The checks that are wanted and have something to look at: what only a run or a log shows needs one."""
    return tuple(
        check
        for check in registry.checks
        if settings.selects(check.code, check.slug) and _applies(check, with_run=case.observation is not None)
    )


def _applies(check: AnyCheck, *, with_run: bool) -> bool:
    wants = check.wants
    if wants is None:
        return "case" in check.rule.seen or (with_run and "run" in check.rule.seen)
    looks_at_case = wants.command or wants.machine or bool(wants.names) or bool(wants.text)
    return looks_at_case or (wants.run and with_run)


def _require_directory(directory: str) -> None:
    try:
        # A working directory that has been removed still answers isdir(), but has no path any more.
        found = os.path.isdir(os.path.abspath(directory))
    except FileNotFoundError:
        found = False
    if not found:
        where = "the working directory" if directory == "." else directory
        raise InputError(f"{where} does not exist", hint="change to a directory that does")


def _settings(request: Request) -> Settings:
    settings = load_settings(request.directory)
    return replace(
        settings,
        select=request.select or settings.select,
        ignore=settings.ignore + request.ignore,
        fail_on=request.fail_on or settings.fail_on,
    )


def read_sources(request: Request) -> tuple[tuple[Source, ...], tuple[str, ...], tuple[Problem, ...]]:
    """The texts of a request, the files that hold no kind of text that is read, and what is wrong with the others.

    Raises:
        UsageError: no command, or an empty one.
    """
    from mgpu_doctor.read.text import decode, read_source

    sources: list[Source] = []
    unread: list[str] = []
    problems: list[Problem] = []
    if request.command is not None:
        if not request.command.strip():
            raise UsageError(_EMPTY, hint=_FOR_INSTANCE)
        sources.append(decode(_encoded(request.command), "<command>", "command"))
    if request.argv:
        if not any(word.strip() for word in request.argv):
            raise UsageError(_EMPTY, hint=_FOR_INSTANCE)
        from mgpu_doctor.shell import join_argv

        sources.append(Source("<command>", join_argv(request.argv), "command"))
    if request.text is not None:
        sources.append(decode(_encoded(request.text), request.text_name, request.text_kind))
    for path in request.files:
        try:
            source = read_source(os.path.join(request.directory, path), name=path)
        except InputError as error:
            problems.append(Problem("input", path, error.message))
            continue
        if source is None:
            unread.append(path)
        else:
            sources.append(source)
    return tuple(sources), tuple(unread), tuple(problems)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def read_facts(request: Request, settings: Settings) -> Facts:
    """The machine that the request is about, as far as every command needs it (variables); more follows later.

    Raises:
        InputError: a facts file that cannot be read.
    """
    if request.mode == "lint" and request.facts is None:
        return NO_FACTS
    wanted = request.facts or settings.facts or THIS_MACHINE
    if wanted == "none":
        return NO_FACTS
    if wanted != THIS_MACHINE:
        from mgpu_doctor.collect.facts_file import load_facts

        return load_facts(wanted)
    from mgpu_doctor.collect.machine import this_machine

    return this_machine(frozenset({"environment"}), python=request.python)


def _workspace(request: Request, facts: Facts) -> Workspace:
    from mgpu_doctor.read.workspace import LocalWorkspace

    return LocalWorkspace(request.directory, facts, judge_only_text=request.mode == "lint")


def read_scripts(sources: Iterable[Source], facts: Facts, workspace: Workspace) -> tuple[Script, ...]:
    """Every shell text in the sources, and the scripts that their commands call, as far as these can be read."""
    from mgpu_doctor.shell import parse_all

    def follow(path: str, command: Command) -> Source | None:
        source = workspace.read(path, "shell", command.directory)
        return None if isinstance(source, Unknown) else source

    scripts: list[Script] = []
    for source in sources:
        for excerpt in _excerpts(source):
            scripts.extend(parse_all(excerpt, environment=facts.environment, follow=follow))
    return tuple(scripts)


def _excerpts(source: Source) -> tuple[Excerpt, ...]:
    if source.kind in ("markdown", "rst"):
        from mgpu_doctor.read.markdown import excerpts

        return excerpts(source)
    if source.kind == "notebook":
        from mgpu_doctor.read import notebook

        return notebook.excerpts(source)
    if source.kind == "python":
        from mgpu_doctor.read import python_source

        return python_source.excerpts(source)
    if source.kind == "vscode":
        from mgpu_doctor.read import vscode

        return vscode.excerpts(source)
    if source.kind == "shell":
        from mgpu_doctor.read import shellfile

        return shellfile.excerpts(source)
    if source.kind in _EMBEDDING:
        return _embedded(source)
    return (Excerpt.whole(source),)


def _embedded(source: Source) -> tuple[Excerpt, ...]:
    """The commands in a file of another language, most of which hold none."""
    from mgpu_doctor.shell import mentions_launcher

    if not mentions_launcher(source.text) and ".sh" not in source.text:
        return ()
    from mgpu_doctor.read.embedded import read_embedded

    return read_embedded(source)


def _look_closer(facts: Facts, scripts: tuple[Script, ...], request: Request) -> Facts:
    """Look at the rest of this machine when it is what was asked about, or a command is to be judged by it."""
    about_machine = request.mode in ("check", "probe") and not (request.files or request.text is not None)
    if facts.origin != THIS_MACHINE or not (about_machine or any(script.commands for script in scripts)):
        return facts
    from mgpu_doctor.collect.machine import this_machine, users_variables

    if request.python is not None:
        return this_machine(python=request.python)
    from mgpu_doctor.collect.activation import chosen_interpreter

    commands = (command for script in scripts for command in script.commands)
    chosen = chosen_interpreter(commands, users_variables(), request.directory)
    found = this_machine(python=chosen.python, path=chosen.path)
    return found if chosen.toolkit is None else replace(found, cuda_home=chosen.toolkit, nvcc=chosen.toolkit)


def _knowledge(facts: Facts) -> Knowledge:
    from mgpu_doctor.knowledge import PackageKnowledge

    return PackageKnowledge(facts, site_packages=facts.site_packages)


def resolve_launches(
    scripts: Iterable[Script], facts: Facts, knowledge: Knowledge, workspace: Workspace
) -> tuple[Launch, ...]:
    """What the commands that launch something would do, in order."""
    from mgpu_doctor.launchers import resolve

    found = (
        resolve(command, facts, knowledge, workspace)
        for script in scripts
        for command in script.commands
        if command.words
    )
    return tuple(launch for launch in found if launch is not None)


def _look_at_ports(facts: Facts, launches: Iterable[Launch]) -> Facts:
    """Try the ports that the launches name, on this machine only."""
    if facts.origin != THIS_MACHINE:
        return facts
    from mgpu_doctor.collect.ports import ports_named, with_ports

    named = ports_named(launches)
    return with_ports(facts, named) if named else facts


def _report(
    request: Request,
    settings: Settings,
    case: Case,
    outcomes: tuple[Outcome, ...],
    problems: tuple[Problem, ...],
    unread: tuple[str, ...],
) -> Report:
    found = [finding for outcome in outcomes for finding in outcome.findings if not _ignored(settings, finding)]
    if any(source.kind in _EMBEDDING or source.kind in ("markdown", "rst") for source in case.sources):
        from mgpu_doctor.landing import landed

        found = landed(found, _excerpts)
    places: Iterable[tuple[Source, Span]] = ((command.source, command.span) for command in case.commands)
    if any(script.source.within is not None for script in case.scripts):
        from mgpu_doctor.in_file import in_file, places_in_file

        found = [in_file(finding) for finding in found]
        places = places_in_file(places)
    kept, suppressed, bad_comments = apply_suppressions(found, places)
    return Report(
        request.mode,
        case,
        _each_once(sorted(kept, key=_order)),
        suppressed,
        outcomes,
        (*problems, *bad_comments),
        unread,
        settings.fail_on,
        _device_maps(case),
        _verdict(case),
    )


def _explained(case: Case, checks: tuple[AnyCheck, ...], outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """The outcomes, with what the output of a job that broke says about the cause."""
    verdict = _verdict(case)
    if case.observation is None or verdict is None or verdict.word != BROKEN:
        return outcomes
    from mgpu_doctor.diagnose_output import with_causes

    return with_causes(case.observation, checks, outcomes)


def _verdict(case: Case) -> Verdict | None:
    if case.observation is None:
        return None
    from mgpu_doctor.verdict import judge

    return judge(case.observation, case.launches[0] if len(case.launches) == 1 else None)


def _device_maps(case: Case) -> tuple[DeviceMap, ...]:
    """Which GPU is which, for each launch or for the machine as it is."""
    if case.mode == "lint" or isinstance(case.facts.gpus, Unknown):
        return ()
    from mgpu_doctor.launchers.device_map import map_devices

    found = [map_devices(case.facts, launch) for launch in case.launches or (None,)]
    return tuple(one for one in found if not isinstance(one, Unknown))


def _ignored(settings: Settings, finding: Finding) -> bool:
    if finding.location is None or finding.location.source.path is None:
        return False
    return settings.ignored_in(finding.location.source.path, finding.code, finding.slug)


def _each_once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings without those that a script earns again because several texts call it."""
    seen: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        place = finding.location
        path = place and os.path.normpath(place.source.path or place.source.name)
        seen.setdefault((finding.code, finding.message, finding.subject, path, place and place.span), finding)
    return tuple(seen.values())


def _order(finding: Finding) -> tuple[object, ...]:
    if finding.location is None:
        return (finding.severity.rank, 1, "", 0, finding.code)
    return (finding.severity.rank, 0, finding.location.source.name, finding.location.span.start, finding.code)
