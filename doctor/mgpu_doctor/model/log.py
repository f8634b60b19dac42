"""What the output of a run says: the lines that give a cause away, and who failed first."""

from __future__ import annotations

from mgpu_doctor.model.finding import Severity
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Location, Source, Span


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log: its number from 1, the rank that wrote it (None when the line does not tell), its text.

    ``text`` has no colours, no rank prefix and no time stamp; of a line that a progress bar overwrote it is the last
    state.
    """

    log: str
    number: int
    rank: str | None
    text: str

    @property
    def location(self) -> Location:
        """The whole line as a place in the log."""
        return self.place(0, len(self.text))

    def place(self, start: int, end: int) -> Location:
        """A part of the line as a place in the log."""
        return Location(Source(self.log, self.text, "log", self.log, self.number), Span(start, end))


@dataclass(frozen=True, slots=True)
class LogHit:
    """A line that fits a rule's signature; ``start`` and ``end`` say where in its text."""

    code: str
    line: LogLine
    start: int
    end: int
    weak: bool
    severity: Severity
    where: str
    """The release that prints such a line, as the signature names it."""

    @property
    def location(self) -> Location:
        """The part of the line that gave it away."""
        return self.line.place(self.start, self.end)


BATCHES = "the trainer's batch sizes"
"""The source of what was only reckoned from batch sizes."""


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


@dataclass(frozen=True, slots=True)
class ProcessTold:
    """A process of the run as a line of the log names it; None where the line does not tell.

    ``rank`` is that of the communicator which the line speaks of, ``device`` what the process calls it (``cuda:0``),
    ``bus_id`` the PCI bus of the physical GPU, in NCCL's hexadecimal form.
    """

    rank: int
    device: str | None = None
    host: str | None = None
    pid: int | None = None
    bus_id: str | None = None


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How many processes a run started, by its own word.

    ``source`` is whose lines say so. ``processes`` are those that were named, perhaps fewer than ``world_size``;
    ``visible`` the physical devices that deepspeed's launcher gave to this node, empty when it did not tell.
    ``one_group`` says that the processes surely belong to one run: NCCL named their communicator.
    """

    world_size: int
    source: str
    processes: tuple[ProcessTold, ...] = ()
    visible: tuple[int, ...] = ()
    one_group: bool = False

    @property
    def gpus(self) -> int | None:
        """How many distinct physical GPUs the named processes hold; None when a line does not tell."""
        if not self.processes or any(process.bus_id is None for process in self.processes):
            return None
        return len({(process.host, process.bus_id) for process in self.processes})

    @property
    def hosts(self) -> int | None:
        """On how many hosts the named processes run; None when a line does not tell."""
        if not self.processes or any(process.host is None for process in self.processes):
            return None
        return len({process.host for process in self.processes})

    @property
    def shared(self) -> tuple[tuple[ProcessTold, ...], ...]:
        """Processes that hold one physical GPU together, a tuple for each such GPU."""
        by_gpu: dict[tuple[str, str], list[ProcessTold]] = {}
        for process in self.processes if self.one_group else ():
            if process.host is not None and process.bus_id is not None and process.pid is not None:
                by_gpu.setdefault((process.host, process.bus_id), []).append(process)
        return tuple(tuple(group) for group in by_gpu.values() if len({process.pid for process in group}) > 1)

    @property
    def sentence(self) -> str:
        """One calm line: how many processes, on how many GPUs, and who says so."""
        if self.source == BATCHES:
            return f"the batch is split over {count_of(self.world_size, 'device')}, by {self.source}"
        by = f"by {self.source}'s own lines"
        if self.world_size == 1:
            return f"one process, {by}"
        gpus, hosts, named = self.gpus, self.hosts, len(self.processes)
        if gpus is None:
            devices = sorted({process.device for process in self.processes if process.device is not None})
            on = f", on {', '.join(devices)}" if devices and named == self.world_size else ""
            return f"{self.world_size} processes{on}, {by}"
        place = "" if hosts is None else f" of {'one host' if hosts == 1 else f'{hosts} hosts'}"
        held = f"{count_of(gpus, 'distinct GPU')}{place}"
        if named < self.world_size:
            return f"world size {self.world_size}; the {named} ranks that speak here are on {held}, {by}"
        return f"{named} ranks on {held}, {by}"


@dataclass(frozen=True, slots=True)
class SmiGpu:
    """A GPU in the text of nvidia-smi; memory in MiB, utilization in percent, None where the text does not tell.

    ``pids`` are the processes that compute on it, None when the text lists none of any GPU although memory is held,
    as inside a container.
    """

    index: int
    name: str | None = None
    bus_id: str | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    utilization: int | None = None
    pids: tuple[int, ...] | None = None

    @property
    def is_idle(self) -> bool | None:
        """Whether nothing computes on it; None when the text does not tell."""
        if self.pids:
            return False
        if self.memory_used is not None and self.memory_used >= _CONTEXT_MIB:
            return False
        if self.pids == () or self.memory_used is not None:
            return True
        return None


@dataclass(frozen=True, slots=True)
class SmiReading:
    """The text of nvidia-smi: its GPUs, in its order."""

    name: str
    gpus: tuple[SmiGpu, ...]

    @property
    def sentence(self) -> str:
        """One line: which GPUs hold work."""
        gpus = count_of(len(self.gpus), "GPU")
        busy = [gpu for gpu in self.gpus if gpu.is_idle is False]
        if any(gpu.is_idle is None for gpu in self.gpus):
            return f"{gpus}; the text does not tell what they hold"
        if not busy:
            return f"{gpus}, none of which holds any work"
        processes = {pid for gpu in busy for pid in gpu.pids or ()}
        who = f" ({count_of(len(processes), 'process', 'processes')})" if processes else ""
        return f"{gpus}; work lies on {', '.join(str(gpu.index) for gpu in busy)}{who}"


_CONTEXT_MIB = 200
"""Less than a CUDA context of torch takes (some 400 MiB), more than the driver holds for itself on most GPUs."""


@dataclass(frozen=True, slots=True)
class LogReading:
    """What one log says.

    ``hits`` are the lines that say why it failed, in the order of the log, the first of each signature and rank: the
    echoes of other ranks are left out. ``errors`` are the first few lines that
    end a failure of any kind, whether or not a rule knows them; ``failed`` says that the run did not end well.
    """

    name: str
    lines: int
    bytes: int
    hits: tuple[LogHit, ...]
    errors: tuple[LogLine, ...]
    failed: bool
    first_failed_rank: str | None = None
    """The rank that the launcher itself names as the first to fail, else that of the first error."""
    parallel: Parallelism | None = None
    """What its start-up lines say of processes and devices; None when they say nothing."""
