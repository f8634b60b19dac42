"""An offline switch is set, but not so that it works."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import (
    DATASETS,
    HUB,
    INVENTED,
    OFF,
    ON,
    SWITCHES,
    TRANSFORMERS,
    is_offline,
    is_offline_machine,
    sets_itself,
    value_of,
)
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Span,
    Unknown,
    Variable,
    replace,
    report,
)

RULE = Rule(
    code="MGD402",
    slug="offline-flags-partial",
    title="The offline switch has no effect",
    severity=Severity.WARNING,
    summary="A variable that should keep the job off the network is off, on another command, or read by nothing.",
    why=(
        "huggingface_hub takes `HF_HUB_OFFLINE`, and only when that is not set `TRANSFORMERS_OFFLINE`; the value "
        "has to be 1, on, yes or true. Else the libraries ask the hub as if nothing had been said: "
        "the job waits for time-outs, stops, or loads newer files than those on disk."
    ),
    bad=(
        Example("a value that means no", "HF_HUB_OFFLINE=enabled torchrun --nproc_per_node 4 train.py"),
        Example("one switch undoes the other", "HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=1 torchrun train.py"),
        Example(
            "off on a machine without network",
            "export HF_HUB_OFFLINE=0\ntorchrun --nproc_per_node 4 train.py",
            facts={"network": {"huggingface.co": False}},
        ),
        Example("set for cd alone", "HF_HUB_OFFLINE=1 cd /data && torchrun --nproc_per_node 4 train.py"),
        Example("a name that nothing reads", "HF_OFFLINE=1 torchrun --nproc_per_node 4 train.py"),
        Example("a name that nothing reads, exported", "export TRANSFORMERS_OFFLINE_MODE=1\npython train.py"),
    ),
    good=(
        Example(
            "inherited and read by the program",
            "python train.py",
            files={"train.py": "import os\nif os.environ.get('HF_OFFLINE'):\n    print('offline')\n"},
            facts={"env": {"HF_OFFLINE": "1"}},
        ),
        Example("inherited by a program that is not known", "python train.py", facts={"env": {"HF_OFFLINE": "1"}}),
        Example("on", "HF_HUB_OFFLINE=1 torchrun --nproc_per_node 4 train.py"),
        Example("on in words", "HF_HUB_OFFLINE=True TRANSFORMERS_OFFLINE=yes torchrun train.py"),
        Example("off on purpose", "HF_HUB_OFFLINE=0 torchrun --nproc_per_node 4 train.py"),
        Example("data sets alone", "HF_DATASETS_OFFLINE=1 torchrun --nproc_per_node 4 train.py"),
        Example("only a missing export, which has a rule of its own", "HF_HUB_OFFLINE=1\ntorchrun train.py"),
        Example(
            "online for the download", "HF_HUB_OFFLINE=0 hf download org/model\nHF_HUB_OFFLINE=1 torchrun train.py"
        ),
        Example("unknown value", 'HF_HUB_OFFLINE="$MODE" TRANSFORMERS_OFFLINE=1 torchrun train.py'),
        Example("set for cd and for the job", "HF_HUB_OFFLINE=1 cd /data && HF_HUB_OFFLINE=1 torchrun train.py"),
        Example(
            "the script reads it",
            "HF_OFFLINE=1 torchrun train.py",
            files={"train.py": "import os\nif os.environ.get('HF_OFFLINE'):\n    print('offline')\n"},
        ),
    ),
    sources=(
        Reference(
            "huggingface_hub 0.20.3 … 2.4.0, constants.py",
            'HF_HUB_OFFLINE = _is_true(environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE")): "0" is '
            "not empty and so wins; true are 1, ON, YES, TRUE",
        ),
        Reference(
            "transformers 5.0.0 … 5.23.0", "no source reads TRANSFORMERS_OFFLINE any more; huggingface_hub still does"
        ),
    ),
    fix="set HF_HUB_OFFLINE=1 on the command that runs the job",
    fixable=True,
)

CANNOT_USE_IT = frozenset(
    {
        "cd",
        "source",
        ".",
        "echo",
        "export",
        "set",
        "true",
        ":",
        "sleep",
        "mkdir",
        "ulimit",
        "nvidia-smi",
        "module",
        "eval",
    }
)
"""Commands for which nobody would set the switch: it was meant for the next one."""


def find(case: Case) -> Iterator[Finding]:
    """Switches without effect, in each launch's environment and on the commands in front of it."""
    seen: set[tuple[str, Span]] = set()
    for launch in case.launches:
        found = [*_in_environment(case, launch), *_on_other_command(case, launch)]
        for finding in found:
            key = (
                (finding.location.source.name, finding.location.span)
                if finding.location
                else (finding.subject or "", Span(0, 0))
            )
            if key not in seen:
                seen.add(key)
                yield finding


def _in_environment(case: Case, launch: Launch) -> Iterator[Finding]:
    values = {name: value_of(case, launch, name) for name in SWITCHES}
    for name, value in values.items():
        if isinstance(value, str) and value.upper() not in ON | OFF:
            yield _wrong_value(launch, name, f"{name}={value} means no: only 1, on, yes and true switch it on.")
    hub, transformers = values[HUB], values[TRANSFORMERS]
    if isinstance(hub, str) and hub.upper() in OFF:
        if hub and isinstance(transformers, str) and transformers.upper() in ON:
            yield _wrong_value(launch, HUB, f"{HUB}={hub} wins over {TRANSFORMERS}: the job asks the hub.")
        elif is_offline_machine(case) and is_offline(case, launch) is False and not sets_itself(launch):
            yield _wrong_value(
                launch, HUB, f"{HUB}={hub or '(empty)'} lets the job ask the hub, which this machine cannot reach."
            )
    if is_offline(case, launch) is False:
        yield from _invented(case, launch)


def _invented(case: Case, launch: Launch) -> Iterator[Finding]:
    for variable in launch.command.environment:
        name = variable.name
        if name in (*SWITCHES, DATASETS) or not INVENTED.fullmatch(name) or (variable.text or "").upper() not in ON:
            continue
        if case.knowledge.variable_readers(name) != () or _is_read_by_target(launch, name):
            continue
        yield _renamed(name, variable)
    yield from _inherited(case, launch)


def _inherited(case: Case, launch: Launch) -> Iterator[Finding]:
    """The same from outside, where other programs may read the name: only for a program that is known."""
    environment = case.facts.environment
    if isinstance(environment, Unknown) or launch.command.unset_all or isinstance(launch.target.program, Unknown):
        return
    given = {variable.name for variable in launch.command.environment}
    for name, value in sorted(environment.items()):
        if name in given or name in (*SWITCHES, DATASETS) or not INVENTED.fullmatch(name) or value.upper() not in ON:
            continue
        if case.knowledge.variable_readers(name) == () and not _is_read_by_target(launch, name):
            yield _renamed(name, None)


def _is_read_by_target(launch: Launch, name: str) -> bool:
    program = launch.target.program
    return not isinstance(program, Unknown) and name in program.source.text


def _on_other_command(case: Case, launch: Launch) -> Iterator[Finding]:
    """A switch in front of the command above, which cannot use it, while the job goes without."""
    job = launch.command
    if is_offline(case, launch) is not False or any(value_of(case, launch, name) is not None for name in SWITCHES):
        return
    for script in case.scripts:
        if script.source is not job.source:
            continue
        at = next((number for number, command in enumerate(script.commands) if command is job), 0)
        if at and script.commands[at - 1].name in CANNOT_USE_IT:
            yield from _prefixes(script.commands[at - 1], job)


def _prefixes(other: Command, job: Command) -> Iterator[Finding]:
    for variable in other.environment:
        if variable.scope == "prefix" and variable.name in SWITCHES and (variable.text or "").upper() in ON:
            at = variable.location
            if (
                at is None
                or not job.words
                or job.wrappers
                or job.words[0].origin is not None
                or at.source is not job.source
            ):
                edits: tuple[Edit, ...] = ()
            else:
                text = at.source.text
                end = at.span.end
                while end < len(text) and text[end] in " \t":
                    end += 1
                start = job.words[0].span.start
                edits = (
                    replace(at.source, Span(at.span.start, end), ""),
                    replace(at.source, Span(start, start), f"{at.source.slice(at.span)} "),
                )
            yield report(
                RULE,
                f"{variable.name} is set for {other.name} alone; the job behind it does not get it.",
                at,
                fix=Fix(f"put it in front of {job.name or 'the job'}", edits),
            )


def _wrong_value(launch: Launch, name: str, message: str) -> Finding:
    return _report(name, launch.command.variable(name), message, f"set {name}=1", f"{name}=1")


def _renamed(name: str, variable: Variable | None) -> Finding:
    message = f"Nothing reads {name}; the switch is {HUB}. The job asks the hub."
    return _report(name, variable, message, f"rename it to {HUB}", f"{HUB}=1")


def _report(name: str, variable: Variable | None, message: str, title: str, text: str) -> Finding:
    at = variable.location if variable is not None else None
    if at is None:
        fix = Fix(title, commands=(f"export {text}",))
        return report(RULE, message, subject=f"{name} in the environment", fix=fix)
    edits = (replace(at.source, at.span, text),) if at.source.slice(at.span).startswith(f"{name}=") else ()
    return report(RULE, message, at, fix=Fix(title, edits))
