"""A report built by hand, so that rendering is tested without the parsers."""

from __future__ import annotations

import pytest

from mgpu_doctor.model.case import Case
from mgpu_doctor.model.command import Command, Piece, Variable, Word
from mgpu_doctor.model.facts import NO_FACTS, Facts, Gpu
from mgpu_doctor.model.finding import Edit, Evidence, Finding, Fix, Outcome, OutcomeKind, Severity
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import (
    Engine,
    Launch,
    Layer,
    Option,
    OptionSpec,
    RankPlacement,
    Release,
    Rendezvous,
    Target,
    VisibleDevices,
)
from mgpu_doctor.model.report import Problem, Report, Suppressed
from mgpu_doctor.model.source import Location, Source, Span

COMMAND = "CUDA_VISIBLE_DEVICES=4,5 HF_TOKEN=hf_abcdefghijklmnop1234 deepspeed --num_gpus 2 -m 训练.launcher --gpus 0,1"


class Sample:
    """A launch of deepspeed on a machine with eight GPUs, and what is wrong with it."""

    def __init__(self, facts: Facts, ranks: int = 2) -> None:
        self.source = Source("<command>", COMMAND, "command")
        self.launch = self._launch(ranks, facts)
        self.report = Report(
            mode="explain",
            case=Case((self.source,), (), (self.launch,), facts, None, None, "explain"),  # type: ignore[arg-type]
            findings=self._findings(),
            suppressed=(Suppressed(self._findings()[1], "we know"),),
            outcomes=(
                Outcome("MGD201", "visible-devices-ignored", OutcomeKind.FINDINGS, self._findings()[:1]),
                Outcome("MGD115", "target-option-unknown", OutcomeKind.FINDINGS, self._findings()[1:]),
                Outcome("MGD215", "gpu-busy", OutcomeKind.SKIPPED, reason="no machine was looked at"),
                Outcome("MGD301", "port-in-use", OutcomeKind.SKIPPED, reason="no machine was looked at"),
                Outcome("MGD302", "port-shared", OutcomeKind.OK),
                Outcome("XYZ001", "their-own", OutcomeKind.CRASHED, reason="ValueError: no", distribution="other"),
            ),
            problems=(Problem("input", "a.sh", "a.sh: empty"),),
            unread=("a.bin",),
        )

    def span(self, text: str) -> Span:
        """Where a text stands in the command."""
        start = self.source.text.index(text)
        return Span(start, start + len(text))

    def word(self, text: str) -> Word:
        """A literal word of the command."""
        return Word(self.span(text), (Piece(text, text),))

    def _findings(self) -> tuple[Finding, ...]:
        ignored = Finding(
            "MGD201",
            "visible-devices-ignored",
            Severity.ERROR,
            "deepspeed drops CUDA_VISIBLE_DEVICES=4,5: the job runs on GPUs 0 and 1",
            Location(self.source, self.span("CUDA_VISIBLE_DEVICES=4,5")),
            evidence=(Evidence("deepspeed 0.16.9, launcher/runner.py main()"),),
            related=(Evidence("--num_gpus makes it so", Location(self.source, self.span("--num_gpus 2"))),),
            fix=Fix(
                "use --include",
                (Edit(self.source, self.span("--num_gpus 2"), "--include localhost:4,5"),),
                ("nvidia-smi -L",),
            ),
            alternatives=(Fix("drop --num_gpus"),),
        )
        unknown = Finding(
            "MGD115",
            "target-option-unknown",
            Severity.WARNING,
            "no [bold]such[/bold] option \x1b[31m--gpus\x1b[0m",
            Location(self.source, self.span("--gpus 0,1")),
            fix=Fix("remove it", (Edit(self.source, self.span(" --gpus 0,1"), ""),), safe=True),
        )
        return (ignored, unknown)

    def _launch(self, ranks: int, facts: Facts) -> Launch:
        option = Origin("option", "--num_gpus", Location(self.source, self.span("--num_gpus 2")))
        default = Origin("default", "deepspeed 0.16.9")
        layer = Layer(
            "deepspeed",
            (self.word("deepspeed"),),
            (self.word("--num_gpus"), self.word("2"), self.word("-m")),
            (
                Option(
                    OptionSpec("num_gpus", ("--num_gpus",)), "--num_gpus", (self.word("2"),), self.span("--num_gpus 2")
                ),
            ),
            Release("deepspeed", "0.16.9", "from the facts file", certain=True),
        )
        variables = (
            Variable("CUDA_VISIBLE_DEVICES", self.word("4,5"), "prefix"),
            Variable("HF_TOKEN", self.word("hf_abcdefghijklmnop1234"), "prefix"),
        )
        command = Command(self.source, Span(0, len(COMMAND)), (self.word("deepspeed"),), variables)
        no_inventory = Unknown("no inventory of GPUs")
        inventory = not isinstance(facts.gpus, Unknown)
        placements = tuple(
            RankPlacement(
                rank,
                rank,
                0,
                rank,
                rank if inventory else no_inventory,
                f"GPU-0000000{rank}-1111-2222" if inventory else no_inventory,
            )
            for rank in range(ranks)
        )
        return Launch(
            command=command,
            layers=(layer,),
            target=Target(
                "module", "训练.launcher", self.word("训练.launcher"), (self.word("--gpus"), self.word("0,1"))
            ),
            processes_per_node=Setting(ranks, option),
            nodes=Setting(1, default),
            node_rank=Setting(0, default),
            world_size=Setting(ranks, option),
            visible_before=Setting(VisibleDevices(("4", "5"), (4, 5)), Origin("variable", "CUDA_VISIBLE_DEVICES")),
            visible=Setting(VisibleDevices(("0", "1"), (0, 1)), option),
            rendezvous=Rendezvous(
                Setting("static", default), Setting("127.0.0.1", default), Setting(29500, default), "deepspeed"
            ),
            engine=Setting(Engine("none"), default),
            purpose=Setting("predict", Origin("option", "--do_predict")),
            spread=Setting("replicas", option),
            ranks=placements,
            groups=Setting(True, default),
        )


def eight_gpus() -> Facts:
    """A machine with eight GPUs."""
    gpus = tuple(Gpu(index, "NVIDIA A100-SXM4-80GB", f"GPU-0000000{index}-1111") for index in range(8))
    return Facts(origin="node.json", gpus=gpus)


@pytest.fixture
def sample() -> Sample:
    """The sample on a known machine."""
    return Sample(eight_gpus())


@pytest.fixture
def blind() -> Sample:
    """The sample without any machine."""
    return Sample(NO_FACTS)


@pytest.fixture
def wide() -> Sample:
    """The sample with 64 ranks."""
    return Sample(eight_gpus(), ranks=64)
