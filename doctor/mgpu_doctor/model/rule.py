"""A rule: one cause, one code, with the examples that prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from mgpu_doctor.model.finding import Finding, Severity
from mgpu_doctor.model.record import dataclass, field

if TYPE_CHECKING:
    from mgpu_doctor.model.case import Case


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the behaviour was verified: a named release's source, or a run of it.

    ``where`` is e.g. ``deepspeed 0.16.9, launcher/runner.py main()``; ``fact``
    the behaviour in one sentence; ``ran`` is True when it was seen by running.
    """

    where: str
    fact: str
    ran: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """A line by which a failed run's output gives a cause away.

    ``pattern`` is a regular expression searched in one line (colours, rank prefixes and time stamps taken off);
    ``where`` the release that prints it, and its source; ``line`` a line as it was really printed, which ``pattern``
    must find. ``weak`` marks a line that fits other causes too and counts only when nothing better is seen;
    ``severity`` is that of a finding which rests on this line, None for the rule's.
    """

    pattern: str
    where: str
    line: str
    weak: bool = False
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A command or file that the rule must name, or must leave alone.

    ``command`` is what is typed; ``files`` what lies in the working directory
    (name → text); ``facts`` overrides of the standard host in the plain facts
    form (:func:`mgpu_doctor.testing.standard_facts`), None for "no machine is known". ``lint`` names
    files to lint instead of a command. ``title`` says in a few words what it shows.
    """

    title: str
    command: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] | None = field(default_factory=dict)
    lint: tuple[str, ...] = ()
    log: str | None = None
    """Output of a failed run."""
    observation: Mapping[str, object] | None = None
    """What a probe or a watched run saw, in the plain form of ``mgpu-doctor probe --save``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a check looks for. The rule page, ``explain CODE`` and the tests are made from it.

    ``summary`` is the cause in one line; ``why`` what happens and why it
    matters (Markdown, a short paragraph); ``bad`` must fire, ``good`` are near
    misses that must stay silent.
    """

    code: str
    slug: str
    title: str
    severity: Severity
    summary: str
    why: str
    bad: tuple[Example, ...]
    good: tuple[Example, ...]
    sources: tuple[Reference, ...]
    fix: str | None = None
    fixable: bool = False
    """Whether firing examples that carry edits are silenced by applying them (tested)."""
    signatures: tuple[Signature, ...] = ()
    """What a run that died of this cause leaves in its output."""
    seen: tuple[str, ...] = ("case",)
    """What ``find`` looks at: ``case`` (commands, files, the machine), ``run`` (what a probe or a watched run saw) or
    ``log`` (``case.logs``; signatures need no such code). Without any of these the rule is left out, not passed."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a case must have for a check to have anything to say; one of these is enough.

    ``command``: a command of any kind. ``names``: a launch with a launcher or framework of these names. ``machine``:
    facts of any machine. ``text``: one of these texts in the sources or the scripts that they call. ``run`` and
    ``log``: an observation or a log. Without any of them the check is not even imported.
    """

    command: bool = False
    names: frozenset[str] = frozenset()
    machine: bool = False
    text: tuple[str, ...] = ()
    run: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A rule with the function that looks for it."""

    rule: Rule
    find: Callable[[Case], Iterable[Finding]]
    distribution: str = "mgpu-doctor"

    @property
    def code(self) -> str:
        """The rule's code."""
        return self.rule.code

    @property
    def slug(self) -> str:
        """The rule's slug."""
        return self.rule.slug

    @property
    def wants(self) -> Wants | None:
        """What it needs to have anything to say; None when only it can tell."""
        return None


class DeferredCheck:
    """A check that is imported when something of it is needed: importing a hundred takes longer than a diagnosis.

    ``rule`` and ``find`` raise whatever importing the module raises.
    """

    __slots__ = ("_check", "_load", "code", "distribution", "slug", "wants")

    def __init__(self, code: str, slug: str, wants: Wants, load: Callable[[], Check]) -> None:
        self.code = code
        self.slug = slug
        self.wants = wants
        self.distribution = "mgpu-doctor"
        self._load = load
        self._check: Check | None = None

    @property
    def rule(self) -> Rule:
        """The rule."""
        return self._loaded().rule

    @property
    def find(self) -> Callable[[Case], Iterable[Finding]]:
        """The function that looks for it."""
        return self._loaded().find

    def _loaded(self) -> Check:
        if self._check is None:
            self._check = self._load()
        return self._check


AnyCheck = Check | DeferredCheck
