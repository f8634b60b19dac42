"""``mgpu-doctor probe``, and ``check --probe``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from mgpu_doctor.cli.session import Observe
from mgpu_doctor.cli.verb import FORMAT, NO_COLOR, SELECTION, Given, Option, Verb
from mgpu_doctor.cli.waiting import Waiting
from mgpu_doctor.errors import InputError, UsageError
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.record import dataclass, replace

DEADLINE_S = 60.0
"""Seconds for the whole probe where none are given."""

MOST_PROCESSES = 64

_USUAL_WIDTH = 80


def run(given: Given) -> int:
    """Probe this machine, or a command on it; or show a probe that was saved."""
    from mgpu_doctor.cli.session import conclude

    command = given.text("cmd")
    if command is not None and given.behind:
        raise UsageError("--cmd and -- COMMAND exclude each other", hint="give one of them")
    saved = given.text("from")
    if saved is not None:
        return _show_saved(saved, given, command)
    refuse_facts(given)
    return conclude("probe", given, observer(given), command=command, argv=given.behind, facts="this machine")


def _show_saved(path: str, given: Given, command: str | None) -> int:
    """Judge and show what another run saw; the machine is the one of ``--facts``."""
    from mgpu_doctor.cli.session import conclude
    from mgpu_doctor.collect.observation_file import load_observation

    for name in ("nproc", "deadline", "cpu", "save"):
        if given.options.get(name):
            raise UsageError(f"--from shows a probe that was run: --{name} does not go with it")
    seen = load_observation(path)
    facts = given.text("facts") or "none"
    return conclude("probe", given, command=command, argv=given.behind, facts=facts, observation=seen)


def refuse_facts(given: Given) -> None:
    """Refuse another machine's facts: what is run is run here.

    Raises:
        UsageError: ``--facts`` was given.
    """
    if given.text("facts") is not None:
        raise UsageError("a probe needs this machine: --facts does not go with it", hint="leave --facts out")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the options say about the probe; ``processes`` is None when the command or the machine decides."""

    processes: int | None
    deadline_s: float
    cpu: bool
    python: str | None
    save: str | None


def observer(given: Given) -> Observe:
    """What runs the probe once command and machine are known.

    Raises:
        UsageError: an option's value cannot be.
        InputError: the probe could not be saved where it is wanted.
    """
    wishes = Wishes(
        _count(given.text("nproc")),
        _seconds(given.text("deadline")),
        given.switch("cpu"),
        given.text("python"),
        given.text("save"),
    )
    if wishes.processes is not None and (given.behind or given.text("cmd") or given.words):
        raise UsageError(
            "--nproc is for a probe without a command", hint="a command says itself how many processes it starts"
        )
    if wishes.save is not None:
        _refuse_unwritable(wishes.save)

    def observe(case: Case, note: Waiting) -> Observation:
        seen = _probe(case, wishes, note, commanded=bool(given.behind or given.text("cmd") or given.words))
        if wishes.save is not None:
            save(seen, wishes.save)
        return seen

    return observe


def _probe(case: Case, wishes: Wishes, note: Waiting, *, commanded: bool) -> Observation:
    from mgpu_doctor.probe import ProbePlan, probe
    from mgpu_doctor.render.probe import doing

    launch = _launch(case) if commanded else None
    python = wishes.python
    if python is not None and isinstance(case.facts.python.executable, str):
        # The directory of an environment was turned into its interpreter when the machine was looked at.
        python = case.facts.python.executable
    plan = ProbePlan(launch, case.facts, wishes.processes, python, os.getcwd(), wishes.deadline_s, wishes.cpu)
    note.say(f"probing, at most {wishes.deadline_s:g} s")
    try:
        seen = probe(plan, lambda stage: note.say(_fitting(doing(stage))))
    except KeyboardInterrupt:
        note.clear()
        print("mgpu-doctor: interrupted; what the probe had started has been ended", file=sys.stderr)
        raise
    if launch is None:
        _refuse_torchless(seen, case)
    if wishes.cpu:
        # Nobody promised GPUs to a run that was told to leave them alone.
        return replace(seen, promised_uuids=Unknown("--cpu leaves the GPUs alone"))
    if launch is None and not seen.on_gpu and "CUDA_VISIBLE_DEVICES" not in os.environ:
        # A machine with GPUs promises them, also to workers that found none.
        gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
        return replace(seen, promised_uuids=tuple(gpu.uuid for gpu in gpus)) if gpus else seen
    return seen


def _refuse_torchless(seen: Observation, case: Case) -> None:
    """End a probe whose own choice of an interpreter was at fault: that says nothing about the GPUs."""
    if not seen.ranks and any("No module named 'torch'" in line for line in seen.output):
        python = case.facts.python.executable
        raise InputError(
            f"{python if isinstance(python, str) else 'the interpreter'} has no torch, which the workers need",
            hint="name an interpreter that has it: mgpu-doctor probe --python /path/to/env/bin/python",
        )


def _launch(case: Case) -> Launch:
    """The one launch that a command stands for."""
    if not case.launches:
        raise UsageError(
            "no launch command is recognised, so there is nothing to probe",
            hint="give one: mgpu-doctor probe -- torchrun --nproc-per-node 2 train.py",
        )
    if len(case.launches) > 1:
        names = ", ".join(f"{launch.command.name}" for launch in case.launches[:4])
        raise UsageError(
            f"these are {len(case.launches)} launch commands ({names}), and a probe runs one", hint="give one of them"
        )
    return case.launches[0]


def _fitting(text: str) -> str:
    """A text that leaves room for the dots on one line of the terminal: a wrapped line could not be taken away."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):
        width = _USUAL_WIDTH
    return text if len(text) <= width - 4 else text[: max(width - 5, 1)] + "…"


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= MOST_PROCESSES):
        raise UsageError(f"--nproc must be a number from 1 to {MOST_PROCESSES}, not {text!r}")
    return int(text)


def _seconds(text: str | None) -> float:
    from mgpu_doctor.probe import MOST_SECONDS

    if text is None:
        return DEADLINE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MOST_SECONDS:
        raise UsageError(f"--deadline must be seconds from 1 to {MOST_SECONDS:g}, not {text!r}")
    return seconds


def _refuse_unwritable(path: str) -> None:
    """Say before the probe, not after it, that it cannot be saved there."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory", hint="name a file")
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: is no directory")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable")


def save(seen: Observation, path: str) -> None:
    """Write an observation as JSON: the file is there whole, or not at all.

    Raises:
        InputError: it cannot be written.
    """
    import contextlib
    import tempfile

    from mgpu_doctor.render.json import dump

    text = dump(shown_observation(seen), pretty=True)
    written = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=os.path.dirname(path) or ".", prefix=".mgpu-doctor-", delete=False
        ) as file:
            written = file.name
            file.write(text)
        os.chmod(written, 0o666 & ~_mask())
        os.replace(written, path)
    except OSError as error:
        if written is not None:
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise InputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _mask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def shown_observation(seen: Observation) -> dict[str, Any]:
    """The plain form of an observation, secrets masked."""
    from mgpu_doctor.collect.observation_file import observation_document

    return {key: _masked(value) for key, value in observation_document(seen).items()}


def _masked(value: Any) -> Any:
    from mgpu_doctor.render.clean import mask

    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list) else value


DEADLINE = Option("--deadline", f"Seconds for the whole probe. Default: {DEADLINE_S:g}.", "S")
CPU = Option("--cpu", "Leave the GPUs alone: proves the launch, not the GPUs.")
SAVE = Option("--save", "Write what was seen to a file, as JSON.", "FILE")

VERB = Verb(
    "probe",
    "Find out in seconds whether GPUs truly work in parallel. Without a command one worker is started for each "
    "visible GPU. With a command its real launcher, with its own options, starts the workers in the place of your "
    "program, which is not run. Nothing of it is left behind.",
    "[-- COMMAND]",
    (
        Option("--nproc", "So many workers, where no command says it. Default: one for each visible GPU.", "N"),
        DEADLINE,
        CPU,
        Option("--python", "The interpreter, with torch in it, that runs the workers.", "PATH"),
        Option("--cmd", "The command as one text, as it would be typed.", "TEXT"),
        SAVE,
        Option("--from", "Run nothing: show a probe that was saved.", "FILE"),
        FORMAT,
        *SELECTION,
        Option("--facts", "With --from: the machine that it was run on, as a facts file.", "FILE|none"),
        NO_COLOR,
    ),
    run,
    (
        "mgpu-doctor probe",
        "mgpu-doctor probe --nproc 2 --save probe.json",
        "mgpu-doctor probe -- accelerate launch --num_processes 4 train.py --lr 1e-5",
        'mgpu-doctor probe --cmd "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py"',
        "mgpu-doctor probe --cpu -- torchrun --nproc-per-node 4 train.py",
        "mgpu-doctor probe --from probe.json",
    ),
    dashes=True,
    most_words=0,
)
