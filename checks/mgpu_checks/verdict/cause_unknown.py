"""A run failed for a reason that no rule explains."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import Case, Evidence, Example, Finding, Fix, Reference, Rule, Severity, report

RULE = Rule(
    code="MGD912",
    slug="cause-unknown",
    title="The cause is not known",
    severity=Severity.ADVICE,
    summary="the run failed for a reason that no rule explains",
    why=(
        "When one rank fails, the launcher ends the others, and their last words bury the first ones. The first error "
        "of the rank that failed first is where to look. With NCCL_DEBUG=INFO and TORCH_DISTRIBUTED_DEBUG=DETAIL the "
        "next run says more, and `mgpu-doctor facts` records the machine for whoever is asked."
    ),
    bad=(
        Example(
            "an error of the program itself",
            log=(
                "[rank1]: Traceback (most recent call last):\n"
                '[rank1]:   File "train.py", line 40, in <module>\n'
                "[rank1]:     batch = collate(rows)\n"
                "[rank1]: ValueError: rows of different lengths\n"
            ),
        ),
        Example("no error at all, only the launcher's word", log="train.py FAILED\n"),
    ),
    good=(
        Example("a run that ends well", log="{'loss': 1.93, 'epoch': 0.01}\nTraining completed.\n"),
        Example(
            "a warning about errors",
            log="W0101 00:00:00.000000 1 torch/distributed/run.py:766] Setting OMP_NUM_THREADS\nerror_rate: 0.02\n",
        ),
    ),
    sources=(
        Reference(
            "torch 2.6.0, distributed/elastic/multiprocessing/errors/__init__.py ChildFailedError",
            "names the rank whose failure was observed first as root cause, and ends the others with SIGTERM",
        ),
    ),
    fix="look at the first error of the rank that failed first; run again with NCCL_DEBUG=INFO if it tells nothing",
    seen=("log",),
)

COLLECT = (
    "run again with NCCL_DEBUG=INFO and TORCH_DISTRIBUTED_DEBUG=DETAIL set, keep the output of every rank "
    "(torchrun --tee 3 --log-dir logs), and add the output of `mgpu-doctor facts`"
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each log of a failed run in which no rule recognises a line."""
    for log in case.logs:
        if not log.failed or log.hits:
            continue
        first = next((line for line in log.errors if line.rank == log.first_failed_rank), None)
        first = first or next(iter(log.errors), None)
        if first is None:
            yield report(
                RULE,
                f"The run of {log.name} failed, and no line of its {log.lines} says why: the output of the rank that "
                "failed is not in this file.",
                None,
                subject=log.name,
                fix=Fix(COLLECT),
            )
            continue
        rank = f"rank {first.rank}" if first.rank is not None else "it"
        others = [line for line in log.errors if line is not first]
        yield report(
            RULE,
            f"The run failed for a reason that no rule knows. The first error, on line {first.number}, is what {rank} "
            f"said: {first.text.strip()}",
            first.location,
            evidence=[Evidence(line.text.strip(), line.location) for line in others[:2]],
            fix=Fix(COLLECT),
        )
