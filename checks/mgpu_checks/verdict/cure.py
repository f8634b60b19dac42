"""The way out that a probe found by trying: a setting under which a hang or a wrong result went away."""

from __future__ import annotations

from mgpu_checks.verdict import launch_of
from mgpu_doctor.authoring import Case, Fix, Observation, insert


def fix_by_cure(case: Case, seen: Observation) -> Fix | None:
    """The command with that setting in front; None when no setting helped."""
    cure = seen.cured_by
    if not cure:
        return None
    title = f"set {cure}: with it the same work came back right, though slower"
    launch = launch_of(case)
    if launch is None or launch.command.wrappers or launch.command.pipeline != (0, 1):
        return Fix(title)
    command = launch.command
    if command.source.kind != "command" or launch.layers[0].launcher in ("srun", "mpirun"):
        # What starts processes elsewhere does not hand every variable on.
        return Fix(title)
    return Fix(title, (insert(command.source, command.span.start, f"{cure} "),))
