"""A hostfile lacks the hosts or slots that the command asks for, or cannot be read by the launcher."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mgpu_checks.rendezvous import at_least
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Option,
    Reference,
    Rule,
    Severity,
    Signature,
    Source,
    Span,
    Unknown,
    dataclass,
    report,
)

HOSTS = {"hosts": "alpha slots=2\nbeta slots=2\n"}

RULE = Rule(
    code="MGD311",
    slug="hostfile-mismatch",
    title="The hostfile does not fit the command",
    severity=Severity.ERROR,
    summary="Hosts, slots or counts that the hostfile does not have, or a line that the launcher refuses.",
    why=(
        "deepspeed reads `HOST slots=N` lines and chooses from them with --include, --exclude, --num_nodes and "
        "--num_gpus. A host that is not listed stops it; a slot beyond N stops it before 0.15.2, later releases "
        "take it and use a GPU that the hostfile does not grant. A hostfile that does not exist is skipped with "
        "one line of log: the job runs on this machine alone. mpirun refuses more processes than slots."
    ),
    bad=(
        Example(
            "slots that are not there",
            "deepspeed --hostfile hosts --include=alpha:2,3 train.py",
            files=HOSTS,
            facts=None,
        ),
        Example("a host that is not there", "deepspeed --hostfile hosts --include gamma train.py", files=HOSTS),
        Example("more nodes than hosts", "deepspeed --hostfile hosts --num_nodes 3 train.py", files=HOSTS),
        Example("more GPUs than slots", "deepspeed --hostfile hosts --num_gpus 4 train.py", files=HOSTS),
        Example("no such file", "deepspeed --hostfile host.txt train.py", files=HOSTS),
        Example(
            "a line without slots", "deepspeed --hostfile hosts train.py", files={"hosts": "alpha slots=2\nbeta\n"}
        ),
        Example("a host twice", "deepspeed --hostfile h train.py", files={"h": "alpha slots=2\nalpha slots=4\n"}),
        Example("MPI", "mpirun -np 8 --hostfile hosts python train.py", files=HOSTS),
    ),
    good=(
        Example("hosts and slots", "deepspeed --hostfile hosts --include alpha:0,1@beta:0 train.py", files=HOSTS),
        Example("a comment", "deepspeed --hostfile h train.py", files={"h": "# two nodes\n\nalpha slots=2\n"}),
        Example("fewer nodes", "deepspeed --hostfile hosts --num_nodes 1 --num_gpus 2 train.py", files=HOSTS),
        Example("not known", "deepspeed --hostfile /etc/hosts.ds --include alpha:7 train.py", facts=None),
        Example("this machine", "deepspeed --include localhost:0,1 train.py"),
        Example("MPI", "mpirun -np 4 --hostfile hosts python train.py", files=HOSTS),
        Example("MPI that may oversubscribe", "mpirun --oversubscribe -np 8 --hostfile hosts python t.py", files=HOSTS),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/runner.py fetch_hostfile() and _parse_hostfile()",
            "a missing file is a warning; a line that is not `HOST slots=N` and a host listed twice are ValueErrors",
        ),
        Reference(
            "deepspeed 0.9.5, 0.14.5, launcher/runner.py parse_resource_filter()",
            "ValueError: No slot 'N' specified on host; Hostname 'H' not found in hostfile",
        ),
        Reference(
            "deepspeed 0.15.2, 0.16.9, 0.19.8, launcher/runner.py parse_inclusion_exclusion()",
            "slots that --include names replace those of the hostfile, so that no slot is out of range",
        ),
        Reference(
            "deepspeed 0.16.9, launcher/runner.py main()",
            "--num_gpus N takes slots 0 to N-1 whatever the hostfile says",
        ),
        Reference("Open MPI 5.0, mpirun(1)", "more processes than slots are refused without --oversubscribe"),
    ),
    fix="Make hostfile and command agree",
    signatures=(
        Signature(
            r"Hostname '\S+' not found in hostfile",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py parse_resource_filter()",
            "ValueError: Hostname 'worker-3' not found in hostfile",
        ),
        Signature(
            r"Hostfile contains (?:a bad entry|multiple entries)|Hostfile is (?:empty or )?not formatted correctly",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py _parse_hostfile()",
            "ValueError: Hostfile contains a bad entry: worker-1 slot=2, unable to proceed with launching",
        ),
        Signature(
            r"^ValueError: host \S+ is already defined",
            "deepspeed 0.16.9 and 0.19.8, autotuning/utils.py fetch_hostfile()",
            "ValueError: host worker-1 is already defined",
        ),
        Signature(
            r"There are not enough slots available in the system to satisfy the|Process number should not be "
            r"larger than total available slots",
            "Open MPI 4.1; horovod 0.19.5 (public reports: horovod/horovod issues 978 and 2090)",
            "There are not enough slots available in the system to satisfy the 2 slots",
        ),
        Signature(
            r"Num nodes is >1 but no extra nodes available via hostfile",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py main()",
            "ValueError: Num nodes is >1 but no extra nodes available via hostfile",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Hosts:
    """A hostfile that was read: slots by host (None where a line tells none), and where each stands."""

    source: Source
    slots: Mapping[str, int | None]
    places: Mapping[str, Location]


def find(case: Case) -> Iterator[Finding]:
    """Launches whose hostfile does not fit them."""
    for launch in case.launches:
        layer = launch.layer("deepspeed")
        if layer is not None and layer.opaque is None:
            yield from _of_deepspeed(case, launch, layer)
        mpi = launch.layer("mpirun")
        if mpi is not None:
            yield from _of_mpi(case, launch, mpi)


def _read(case: Case, launch: Launch, option: Option) -> Source | Unknown:
    if option.value is None:
        return Unknown("the hostfile's name is not known")
    return case.workspace.read(option.value, "hostfile", launch.command.directory)


def _of_deepspeed(case: Case, launch: Launch, layer: Layer) -> Iterator[Finding]:
    option = layer.option("hostfile")
    if option is None or option.value is None:
        yield from _of_this_machine(launch, layer)
        return
    if case.workspace.kind(option.value, launch.command.directory) == "missing":
        yield report(
            RULE,
            f"The hostfile {option.value} does not exist: deepspeed says so in one line and runs here alone.",
            launch.command.locate(option.span),
            fix=Fix("Correct the path of the hostfile"),
        )
        return
    source = _read(case, launch, option)
    if isinstance(source, Unknown):
        return
    refused, hosts = _parse(source)
    yield from refused
    if refused:
        return
    yield from _filters(launch, layer, hosts)
    yield from _counts(launch, layer, hosts)


def _of_this_machine(launch: Launch, layer: Layer) -> Iterator[Finding]:
    """Without a hostfile there is one host, and it is called localhost."""
    for dest in ("include", "exclude"):
        option = layer.option(dest)
        for host in _wanted(option):
            # Where a hostfile lies at the default place, its hosts count.
            if option is not None and host != "localhost" and launch.nodes.known == 1:
                yield report(
                    RULE,
                    f"{option.flag} names {host}, but without --hostfile deepspeed knows only localhost.",
                    launch.command.locate(option.span),
                    severity=Severity.WARNING,
                    fix=Fix("Name the hostfile with --hostfile"),
                )


def _parse(source: Source) -> tuple[list[Finding], _Hosts]:
    """The hosts of deepspeed's hostfile, and the lines that it refuses."""
    slots: dict[str, int | None] = {}
    places: dict[str, Location] = {}
    refused = []
    offset = 0
    for line in source.text.splitlines(keepends=True):
        text = line.strip()
        start = offset + line.find(text) if text else offset
        offset += len(line)
        if not text or text.startswith("#"):
            continue
        place = Location(source, Span(start, start + len(text)))
        match = re.search(r"^(\S+)\s+slots=(\d+)", text)
        if match is None:
            refused.append(_refused(f"deepspeed refuses this line of {source.name}: it wants `HOST slots=N`.", place))
        elif match.group(1) in slots:
            refused.append(_refused(f"{match.group(1)} stands twice in {source.name}: deepspeed refuses that.", place))
        else:
            slots[match.group(1)] = int(match.group(2))
            places[match.group(1)] = place
    return refused, _Hosts(source, slots, places)


def _refused(message: str, place: Location) -> Finding:
    return report(RULE, message, place, fix=Fix("Write one line `HOST slots=N` for each host"))


def _wanted(option: Option | None) -> dict[str, list[int]]:
    """``worker-0@worker-1:0,2`` as slots by host; a host without slots means all of its own."""
    found: dict[str, list[int]] = {}
    text = option.value if option is not None else None
    for part in (text or "").split("@"):
        host, _, slots = part.partition(":")
        if host:
            found.setdefault(host, []).extend(int(slot) for slot in slots.split(",") if slot.isdigit())
    return found


def _filters(launch: Launch, layer: Layer, hosts: _Hosts) -> Iterator[Finding]:
    for dest in ("include", "exclude"):
        option = layer.option(dest)
        if option is None:
            continue
        for host, slots in _wanted(option).items():
            if host not in hosts.slots:
                yield report(
                    RULE,
                    f"{option.flag} names {host}, which is not in {hosts.source.name} (it has "
                    f"{', '.join(hosts.slots)}): deepspeed stops.",
                    launch.command.locate(option.span),
                    fix=Fix("Name a host of the hostfile, or add this one to it"),
                )
                continue
            beyond = [slot for slot in slots if slot >= (hosts.slots[host] or 0)]
            if beyond:
                yield _beyond(launch, layer, option, host, beyond, hosts)


def _beyond(launch: Launch, layer: Layer, option: Option, host: str, beyond: list[int], hosts: _Hosts) -> Finding:
    version = layer.release.version if layer.release is not None else None
    accepted = at_least(version, 0, 15, 2) and option.dest == "include"
    if accepted:
        outcome = f"deepspeed {version} uses them although the hostfile does not grant them (before 0.15.2 it stops)"
    else:
        outcome = f"deepspeed stops: No slot '{beyond[0]}' specified on host '{host}'"
    slots = hosts.slots[host]
    return report(
        RULE,
        f"{option.flag} asks for slot{'s' if len(beyond) > 1 else ''} {', '.join(map(str, beyond))} of {host}, which "
        f"has {slots} (0 to {(slots or 1) - 1}) in {hosts.source.name}: {outcome}.",
        launch.command.locate(option.span),
        severity=Severity.WARNING if accepted else Severity.ERROR,
        related=(Evidence(f"{host} has {slots} slots here", hosts.places[host]),),
        fix=Fix("Ask for slots that the hostfile has, or correct the hostfile"),
    )


def _counts(launch: Launch, layer: Layer, hosts: _Hosts) -> Iterator[Finding]:
    nodes, gpus = layer.option("num_nodes"), layer.option("num_gpus")
    if nodes is not None and isinstance(nodes.converted, int) and nodes.converted > len(hosts.slots):
        yield report(
            RULE,
            f"{nodes.flag} is {nodes.converted}, but {hosts.source.name} has {len(hosts.slots)} host"
            f"{'s' if len(hosts.slots) > 1 else ''}: deepspeed starts {len(hosts.slots)}, without a word.",
            launch.command.locate(nodes.span),
            fix=Fix("Add the missing hosts, or correct the number"),
        )
    if gpus is not None and isinstance(gpus.converted, int):
        short = [host for host, slots in hosts.slots.items() if slots is not None and slots < gpus.converted]
        if short:
            yield report(
                RULE,
                f"{gpus.flag} is {gpus.converted}, but {short[0]} has {hosts.slots[short[0]]} slots in "
                f"{hosts.source.name}: deepspeed uses GPUs 0 to {gpus.converted - 1} there all the same.",
                launch.command.locate(gpus.span),
                severity=Severity.WARNING,
                related=(Evidence(f"{short[0]} stands here", hosts.places[short[0]]),),
                fix=Fix("Ask for as many GPUs as the hostfile has slots, or correct the hostfile"),
            )


def _of_mpi(case: Case, launch: Launch, layer: Layer) -> Iterator[Finding]:
    """Open MPI's hostfile: more processes than slots are refused."""
    count, option = layer.option("ntasks"), layer.option("hostfile")
    if count is None or option is None or not (count.value or "").isdigit():
        return
    words = {word.shown.lstrip("-") for word in layer.argument_words}
    if words & {"oversubscribe", "map-by", "use-hwthread-cpus", "f", "machinefile"}:
        return
    source = _read(case, launch, option)
    if isinstance(source, Unknown):
        return
    lines = [line.strip() for line in source.text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    slots = [re.search(r"\bslots\s*=\s*(\d+)", line) for line in lines]
    # A host without slots has as many as it has cores, and MPICH's hostfile is `HOST:N`.
    known = [int(match.group(1)) for match in slots if match is not None]
    wanted = int(count.value or 0)
    if lines and len(known) == len(lines) and wanted > sum(known) and "max" not in source.text:
        yield report(
            RULE,
            f"{wanted} processes, but {source.name} has {sum(known)} slots: mpirun refuses to start more processes "
            "than slots.",
            launch.command.locate(count.span),
            related=(Evidence(f"{sum(known)} slots here", Location(source, Span(0, len(source.text)))),),
            fix=Fix(f"Start {sum(known)} processes, or raise the slots"),
        )
