"""What a run says of itself when it starts: how many processes, and on which devices.

Read are the lines of NCCL (2.5 to 2.30, init.cc: ``comm … rank r nranks n cudaDev d busId b``), deepspeed 0.16.9 and
0.19.8 (launcher/launch.py), accelerate 0.20.3 to 1.15.0 (state.py), LLaMA-Factory 0.7.1 to 0.9.5 (hparams/parser.py),
transformers 4.28.1 to 5.23.0 (trainer.py), Lightning 2.5.0 (fabric/utilities/distributed.py) and torch 1.13.1 to 2.13.0
(distributed/run.py, distributed_c10d.py).
"""

from __future__ import annotations

from mgpu_doctor.model.log import BATCHES, Parallelism, ProcessTold
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field

WORDS = (
    b" nranks ",
    b"dist_world_size=",
    b"Setting CUDA_VISIBLE_DEVICES=",
    b"Num processes: ",
    b"Process rank: ",
    b"GLOBAL_RANK: ",
    b"atch size ",
    b"Accumulation steps = ",
    b"store-based barrier",
)
"""Of these one stands in every line that is read here."""

MOST_PROCESSES = 4096
MOST_GROUPS = 256

_NCCL = pattern(
    r"(?:(\S+):(\d+):\d+ )?\[\d+\] NCCL INFO (?:\w+ )?comm \w+ rank (\d+) nranks (\d+) cudaDev (\d+) "
    r"(?:nvmlDev \d+ )?busId ([0-9a-f]+)\b(?:.* commId (0x[0-9a-f]+))?(?!.*(?:Destroy|Abort))"
)
_DEEPSPEED = pattern(r"\bdist_world_size=(\d+)")
_VISIBLE = pattern(r"\[launch\.py:\d+:main\] Setting CUDA_VISIBLE_DEVICES=(\d+(?:,\d+)*)$")
_ACCELERATE = pattern(r"^Num processes: (\d+)$")
_FACTORY = pattern(
    r"Process rank: (\d+), (?:world size: (\d+), )?device: (\w+(?::\d+)?),?(?: n_gpu: ?(\d+),?)? ?"
    r"distributed training: (True|False)"
)
_LIGHTNING = pattern(r"GLOBAL_RANK: (\d+), MEMBER: \d+/(\d+)")
_BARRIER = pattern(r"^Rank \d+: Completed store-based barrier for key:\S+ with (\d+) nodes")
_PER_DEVICE = pattern(r"Instantaneous batch size per device = ([\d,]+)")
_TOTAL = pattern(r"Total train batch size \(w\. parallel, distributed & accumulation\) = ([\d,]+)")
_ACCUMULATION = pattern(r"Gradient Accumulation steps = ([\d,]+)")


@dataclass(slots=True)
class StartUp:
    """What has been read so far; a line changes it, :meth:`told` says what it amounts to."""

    nccl: dict[tuple[int, str], dict[int, ProcessTold]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, ProcessTold] = field(default_factory=dict)
    visible: tuple[int, ...] = ()
    batch: dict[str, int] = field(default_factory=dict)

    def look(self, text: str) -> None:
        """Take note of a line that may tell; the first word of each kind counts."""
        if "NCCL INFO" in text:
            self._nccl(text)
            return
        for name, expression in (("deepspeed", _DEEPSPEED), ("accelerate", _ACCELERATE), ("torch", _BARRIER)):
            found = expression.search(text)
            if found is not None:
                self.counts.setdefault(name, int(found.group(1)))
                return
        self._frameworks(text)

    def _nccl(self, text: str) -> None:
        found = _NCCL.search(text)
        if found is None or len(self.nccl) >= MOST_GROUPS:
            return
        host, pid, rank, size, device, bus, group = found.groups()
        ranks = self.nccl.setdefault((int(size), group or ""), {})
        if len(ranks) < MOST_PROCESSES:
            ranks[int(rank)] = ProcessTold(int(rank), f"cuda:{device}", host, int(pid) if pid else None, bus)

    def _frameworks(self, text: str) -> None:
        found = _VISIBLE.search(text)
        if found is not None:
            self.visible = self.visible or tuple(int(index) for index in found.group(1).split(","))
            return
        found = _FACTORY.search(text)
        if found is not None and len(self.ranks) < MOST_PROCESSES:
            rank, size, device, _, distributed = found.groups()
            self.ranks.setdefault(int(rank), ProcessTold(int(rank), device))
            if size is not None:
                self.counts.setdefault("the program", int(size))
            elif distributed == "False":
                self.counts.setdefault("the program", 1)
            return
        found = _LIGHTNING.search(text)
        if found is not None:
            self.counts.setdefault("Lightning", int(found.group(2)))
            return
        for name, expression in (("each", _PER_DEVICE), ("total", _TOTAL), ("steps", _ACCUMULATION)):
            found = expression.search(text)
            if found is not None:
                self.batch.setdefault(name, int(found.group(1).replace(",", "")))

    def told(self) -> Parallelism | None:
        """What the lines amount to, the surest first; None when they tell nothing."""
        if self.nccl:
            # The largest communicator is that of the whole job; of runs in one log, the last.
            size, group = max(reversed(self.nccl), key=lambda key: key[0])
            ranks = self.nccl[size, group]
            processes = tuple(ranks[rank] for rank in sorted(ranks))
            return Parallelism(size, "NCCL", processes, self.visible, one_group=bool(group))
        for name in ("the program", "Lightning", "torch", "deepspeed", "accelerate"):
            if name in self.counts:
                known = sorted(self.ranks) if name == "the program" else ()
                return Parallelism(self.counts[name], name, tuple(self.ranks[rank] for rank in known), self.visible)
        if len(self.ranks) > 1:
            return Parallelism(len(self.ranks), "the program", tuple(self.ranks.values()), self.visible)
        return self._from_batches()

    def _from_batches(self) -> Parallelism | None:
        each, total, steps = (self.batch.get(name, 0) for name in ("each", "total", "steps"))
        if not each or not steps or total % (each * steps):
            return None
        return Parallelism(total // (each * steps), BATCHES, (), self.visible)
