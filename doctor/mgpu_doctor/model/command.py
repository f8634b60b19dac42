"""What a shell would run: words, the environment that reaches them, and how they were reached."""

from __future__ import annotations

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Excerpt, Location, Source, Span


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a word: literal text, or the result of an expansion.

    ``text`` is None when the expansion's result is unknown. ``variable`` is the
    name for ``$NAME``/``${NAME…}``, ``$(`` for a command substitution, ``*`` for
    a glob, ``<`` for a ``<placeholder>``, ``...`` for an elision, None for literal text. ``written`` is the
    piece with quoting removed but expansions left as the author wrote them. ``early``
    marks an expansion that an outer shell makes before the text in which it stands
    is read: ``$X`` in ``srun bash -c "… $X …"``.
    """

    text: str | None
    written: str
    variable: str | None = None
    quoted: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """One argument as the program would receive it, and where it was written.

    ``span`` covers the word in ``Command.source``, quotes included. When the
    word comes out of a variable or an array, ``span`` is the place of the
    expansion and ``origin`` the place where the text was written.
    ``splits`` means that the number of arguments that this word turns into is
    not known (an unquoted or array expansion whose value is unknown).
    """

    span: Span
    pieces: tuple[Piece, ...]
    origin: Location | None = None
    splits: bool = False

    @property
    def value(self) -> str | None:
        """The argument's exact text, or None when any part of it is unknown."""
        texts = [piece.text for piece in self.pieces]
        if None in texts:
            return None
        return "".join(text for text in texts if text is not None)

    @property
    def written(self) -> str:
        """The word as the author wrote it, quotes removed, expansions left alone."""
        return "".join(piece.written for piece in self.pieces)

    @property
    def shown(self) -> str:
        """The value when it is known, otherwise the word as written."""
        value = self.value
        return self.written if value is None else value

    @property
    def known_prefix(self) -> str:
        """The text before the first unknown piece; the whole value when all is known."""
        out = []
        for piece in self.pieces:
            if piece.text is None:
                break
            out.append(piece.text)
        return "".join(out)

    @property
    def unknown_variables(self) -> tuple[str, ...]:
        """Names of the variables that keep the word from being known."""
        return tuple(p.variable for p in self.pieces if p.text is None and p.variable)

    @property
    def is_literal(self) -> bool:
        """Whether the word holds no expansion at all."""
        return all(piece.variable is None for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Variable:
    """A shell or environment variable at one moment.

    ``scope`` says how it is set: ``prefix`` (``A=1 cmd``), ``export``,
    ``assignment`` (shell only: children do not see it), ``env`` (through the
    ``env`` command or another wrapper), ``inherited`` (from the caller's
    environment), ``positional`` (``$1``), ``default`` (``${A:=x}``).
    ``value`` is None for a name that has been unset. ``location`` covers the
    whole assignment.
    """

    name: str
    value: Word | None
    scope: str
    location: Location | None = None

    @property
    def text(self) -> str | None:
        """The value's exact text, or None when it is unknown or unset."""
        return self.value.value if self.value is not None else None

    @property
    def exported(self) -> bool:
        """Whether a child process receives it."""
        return self.scope in {"prefix", "export", "env", "inherited"}


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirection: operator (``>``, ``2>&1``, ``<<`` …) and its target word, if any."""

    operator: str
    span: Span
    target: Word | None = None


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A command that only starts another: ``nohup``, ``sudo``, ``srun``, ``uv run`` …

    ``name`` is canonical (``srun``, ``uv run``, ``bash -c``); ``words`` are its
    own words, its name first, without the command that it starts; there are none when it is not part of
    the text: a pod that a manifest describes.
    """

    name: str
    words: tuple[Word, ...]

    @property
    def span(self) -> Span:
        """From the wrapper's name to its last own word; only for one that has words."""
        return Span(self.words[0].span.start, self.words[-1].span.end)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a file of another kind (a workflow, a manifest, a Dockerfile) says about a shell text in it.

    ``variables`` are in the shell's environment. ``wrappers`` stand for what starts the text (a pod, an image's
    build). ``place`` is set when that is not where the file lies (``inside a container``): then nothing of this
    machine's environment and paths counts. ``directory`` is where it runs, None for where the file is
    used. ``early`` are ranges of the text that are filled in before a shell reads it, with what is written
    there: ``${{ matrix.gpus }}``, ``$(MAKE_VARIABLE)``. ``words`` says that no shell reads the text: it is a list
    of words, spelled as a shell would split them.
    """

    variables: tuple[Variable, ...] = ()
    wrappers: tuple[Wrapper, ...] = ()
    place: str | None = None
    directory: str | Unknown | None = None
    early: tuple[tuple[int, int, str], ...] = ()
    words: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command as a shell would run it.

    ``words`` is the innermost command (wrappers peeled off, outermost wrapper
    first in ``wrappers``). ``environment`` holds what reaches the process, by
    name, the last assignment winning; ``shell_only`` holds assignments made
    above that are not exported and so do not reach it. ``unset_all`` is True
    when a wrapper starts from an empty environment (``env -i``).
    """

    source: Source
    span: Span
    words: tuple[Word, ...]
    environment: tuple[Variable, ...] = ()
    shell_only: tuple[Variable, ...] = ()
    wrappers: tuple[Wrapper, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    background: bool = False
    pipeline: tuple[int, int] = (0, 1)
    """Index in its pipeline, and the pipeline's length."""
    directory: str | Unknown | None = None
    """Directory it runs in relative to where the text starts (``cd`` above it); None for that place itself."""
    conditional: bool = False
    """Inside an if, case, loop, function or behind && / ||: it may not run."""
    repeated: bool = False
    """Inside a loop: it may run many times."""
    called_from: Command | None = None
    """The command that runs the script in which this one stands."""
    unset_all: bool = False

    @property
    def name(self) -> str | None:
        """The program's name as typed, or None when unknown."""
        return self.words[0].value if self.words else None

    def variable(self, name: str) -> Variable | None:
        """The variable of that name that reaches the process, if any."""
        for variable in reversed(self.environment):
            if variable.name == name:
                return variable if variable.value is not None else None
        return None

    def shell_variable(self, name: str) -> Variable | None:
        """The un-exported assignment of that name in force here, if any."""
        for variable in reversed(self.shell_only):
            if variable.name == name:
                return variable
        return None

    def locate(self, span: Span) -> Location:
        """A location in this command's source."""
        return Location(self.source, span)


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """A place where the shell would refuse or misread the text."""

    message: str
    span: Span


@dataclass(frozen=True, slots=True)
class Mark:
    """A lexical event that matters to the rules about shell text.

    Kinds: ``continuation`` (backslash-newline that joins two lines),
    ``escaped-blank`` (backslash, blanks, end of line or comment: joins nothing),
    ``comment`` (a comment, span without its newline), ``dangling`` (a
    backslash-newline with nothing to join), ``carriage-return`` (a CR before the
    newline), ``typographic`` (a character that looks like ASCII and is not).
    """

    kind: str
    span: Span
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """A shell text that has been read: its commands in order, and what is odd about the text."""

    excerpt: Excerpt
    commands: tuple[Command, ...]
    problems: tuple[SyntaxProblem, ...] = ()
    marks: tuple[Mark, ...] = ()
    assignments: tuple[Variable, ...] = ()
    """Every assignment in the text, in order, exported or not."""
    directives: tuple[tuple[str, Span], ...] = field(default=())
    """Scheduler directive lines (``#SBATCH …``, ``#PBS …``) with their text."""

    @property
    def source(self) -> Source:
        """The source that the text stands in."""
        return self.excerpt.source
