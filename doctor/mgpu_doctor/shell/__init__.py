"""Shell text → the commands that bash would run.

The functions here import what they need when they are called, so that importing this package costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown

if TYPE_CHECKING:
    from mgpu_doctor.model.command import Command, Script, Variable, Word
    from mgpu_doctor.model.source import Excerpt, Source

    Follow = Callable[[str, Command], Source | None]

NOT_GIVEN = Unknown("the environment that the text is run in is not known")

__all__ = ["NOT_GIVEN", "join_argv", "mentions_launcher", "parse_all", "parse_argv", "parse_shell"]


def parse_shell(
    excerpt: Excerpt,
    *,
    environment: Mapping[str, str] | Unknown = NOT_GIVEN,
    positional: tuple[Word, ...] | None = None,
    called_from: Command | None = None,
    inherited: Sequence[Variable] = (),
    follow: Follow | None = None,
) -> Script:
    """One text's commands, in the order in which the shell runs them; never raises for any text.

    See :func:`parse_all` for the parameters; the scripts that its commands call are read (``source`` sets
    variables) but not returned.
    """
    return parse_all(
        excerpt,
        environment=environment,
        positional=positional,
        called_from=called_from,
        inherited=inherited,
        follow=follow,
    )[0]


def parse_all(
    excerpt: Excerpt,
    *,
    environment: Mapping[str, str] | Unknown = NOT_GIVEN,
    positional: tuple[Word, ...] | None = None,
    called_from: Command | None = None,
    inherited: Sequence[Variable] = (),
    follow: Follow | None = None,
) -> tuple[Script, ...]:
    """A text's script first, then every script that its commands run or source, as far as ``follow`` gives them.

    ``environment`` is what the shell inherits: a variable that the text never assigns has its value
    there; when it is not there it is unknown, except that ``${NAME:-x}`` then takes the default. ``positional``
    are ``$1`` … (None: unknown). ``inherited`` are exported variables of a caller,
    ``called_from`` the command that runs this text. ``follow(path, command)`` answers with a shell script's
    source or None.

    Variables that a wrapper drops (``sudo``, ``docker run``, ``ssh``) stand in the command's ``shell_only`` with
    the scope that they had (``export``, ``prefix``); un-exported assignments have the scope ``assignment``.
    """
    from mgpu_doctor.shell.walk import Context, Outcome, enter, inherit, new_state, read_script

    state = new_state(environment, positional)
    inherit(state, inherited)
    around = excerpt.around
    context = Context(called_from=called_from)
    if around is not None:
        enter(state, around)
        context = Context(called_from=called_from, wrappers=around.wrappers)
    path = excerpt.source.path or excerpt.source.name
    outcome = Outcome(paths=(path,))
    first = read_script(excerpt, state, context, follow, outcome)
    return (first, *outcome.followed)


def join_argv(argv: Sequence[str]) -> str:
    """The words of a command as text that a shell splits into the same words."""
    import shlex

    return shlex.join(argv)


def parse_argv(
    argv: Sequence[str], *, environment: Mapping[str, str] | Unknown = NOT_GIVEN
) -> tuple[Source, Command | None]:
    """Words that a shell has split already: the text made of them, and its command (None when there are no words)."""
    from mgpu_doctor.model.source import Excerpt, Source

    source = Source("<command>", join_argv(argv), "command")
    commands = parse_shell(Excerpt.whole(source), environment=environment).commands
    return source, commands[0] if commands else None


def mentions_launcher(text: str) -> bool:
    """Whether a text names a launcher or python at all; a fast test before parsing."""
    from mgpu_doctor.shell.scan import mentions_launcher as scan

    return scan(text)
