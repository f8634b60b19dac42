"""The ranks add numbers up and get a wrong sum."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import MOST_LINES, place_of, probed, seen_in, subject_of
from mgpu_checks.verdict.cure import fix_by_cure
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Observation,
    Reference,
    Rule,
    Severity,
    Unknown,
    observed,
    report,
)

RULE = Rule(
    code="MGD904",
    slug="collective-wrong",
    title="all_reduce gives a wrong result",
    severity=Severity.ERROR,
    summary="The sum that all_reduce gives is not the sum of what the ranks put in.",
    why=(
        "Every rank puts in a known number, so the right sum is known. A wrong one comes without any error: gradients "
        "are wrong in the same way, the loss becomes NaN or training does not converge. Known causes are peer-to-peer "
        "copies through an IOMMU or PCI access control, and faulty cards or links."
    ),
    bad=(
        Example(
            "three of four ranks get another sum",
            "torchrun --nproc-per-node 4 train.py",
            observation=probed([0, 1, 2, 3], sum_expected=10.0, sum_measured=[10.0, 3.0, 3.0, 7.0]),
        ),
        Example(
            "not a number",
            observation=probed([0, 1], sum_expected=3.0, sum_measured=["NaN", 3.0], cured_by="NCCL_P2P_DISABLE=1"),
        ),
    ),
    good=(
        Example(
            "the right sum everywhere",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], sum_expected=3.0, sum_measured=[3.0, 3.0]),
        ),
        Example(
            "rounding",
            observation=probed([0, 1], sum_expected=3.0, sum_measured=[3.0000001, 3.0]),
        ),
    ),
    sources=(
        Reference(
            "torch 2.7.1, distributed/distributed_c10d.py all_reduce()",
            "after the call the tensor is bitwise identical in all processes",
        ),
    ),
    fix="Switch off what brings the wrong data; have the cards looked at",
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding when a sum is wrong."""
    seen = seen_in(case)
    measured = case.require(seen.sum_measured)
    expected = case.require(seen.sum_expected)
    wrong = observed.wrong_sums(seen)
    if not wrong:
        return
    yield report(
        RULE,
        f"all_reduce gave {measured[wrong[0]]:g} where {expected:g} is right, on {len(wrong)} of {len(measured)} "
        "ranks: every gradient that goes this way is wrong, without any error.",
        place_of(case),
        subject=subject_of(case),
        evidence=[*_sums(seen, measured), *_made_by(seen)],
        fix=fix_by_cure(case, seen),
    )


def _sums(seen: Observation, measured: tuple[float, ...]) -> Iterator[str]:
    for place, value in enumerate(measured[:MOST_LINES]):
        rank = observed.rank_numbered(seen, place)
        where = f" on {observed.device_of(rank)}" if rank is not None else ""
        yield f"rank {place}{where}: {value:g}"
    if len(measured) > MOST_LINES:
        yield f"and {len(measured) - MOST_LINES} more"


def _made_by(seen: Observation) -> Iterator[str]:
    if not isinstance(seen.backend, Unknown):
        versions = ", ".join(f"{name} {seen.versions[name]}" for name in ("torch", "nccl") if name in seen.versions)
        yield f"reduced by {seen.backend}" + (f" ({versions})" if versions else "")
    if seen.cured_by:
        yield f"with {seen.cured_by} the sum is right"
