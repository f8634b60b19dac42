"""The probe: real processes, started as the job would be, that say where they are and whether they reach each other.

Seconds instead of a training run: the launcher of the command, with its own options, starts our worker in the place of
the program. Nothing of it is left when :func:`probe` returns, raises, or is killed.
"""

from __future__ import annotations

from collections.abc import Callable

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.record import dataclass

MOST_SECONDS = 180.0

__all__ = ["ProbePlan", "probe"]


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What is to be probed.

    ``launch`` is the command, None for "one worker a visible GPU" (or ``processes`` of them). ``python`` is the
    interpreter that runs the workers where no launcher chooses it: the user's, with torch in it. ``directory`` is where
    the command would be typed. ``deadline_s`` bounds the whole probe, in seconds, and is never above 180. ``cpu``
    leaves GPUs alone.
    """

    launch: Launch | None
    facts: Facts
    processes: int | None = None
    python: str | None = None
    directory: str = "."
    deadline_s: float = 60.0
    cpu: bool = False


def probe(plan: ProbePlan, progress: Callable[[str], None] | None = None) -> Observation:
    """Start the workers, measure, end everything, and tell what was seen.

    ``progress`` hears the name of each stage as it begins, and what is wrong as it is seen. A launcher or worker that
    fails is part of the observation, not an error.

    Raises:
        UsageError: the plan contradicts itself.
        InputError: the command cannot be started here: a word of it is not known, it runs on another machine or in a
            container, or it has no program that could be replaced.
    """
    import os
    import secrets

    from mgpu_doctor.errors import InputError
    from mgpu_doctor.probe.measure import Measurement
    from mgpu_doctor.probe.session import opened
    from mgpu_doctor.probe.start import launch_start, plain_start, refuse_both

    refuse_both(plan.launch, plan.processes)
    if not os.path.isdir(plan.directory):
        raise InputError(f"{plan.directory} does not exist", hint="name the directory that the command is for")
    facts = plan.facts
    python = plan.python
    if python is None and isinstance(facts.python.executable, str):
        python = facts.python.executable
    seconds = max(1.0, min(plan.deadline_s, MOST_SECONDS))
    with opened(secrets.token_hex(16), seconds, cpu=plan.cpu) as session:
        if plan.launch is None:
            start = plain_start(facts, plan.processes, python, session.worker, cpu=plan.cpu)
        else:
            start = launch_start(plan.launch, python, plan.directory, session.worker)
        return Measurement(session, start, facts, progress or (lambda _: None)).run()
