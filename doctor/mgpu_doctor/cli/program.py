"""The group of verbs, and the program's edge: every error becomes one clear line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from mgpu_doctor import __version__
from mgpu_doctor.errors import MgpuDoctorError

USAGE_EXIT = 2
INTERRUPT_EXIT = 130


class Verb(NamedTuple):
    """Where a verb lives: its module under ``mgpu_doctor.cli``, the click command in it, and its line in the help."""

    module: str
    attribute: str
    help: str


VERBS = {
    "explain": Verb("explain", "explain", "Say what a launch command would really do, or what a rule means."),
    "check": Verb("check", "check", "Check this machine, and a command or files against it."),
    "lint": Verb("lint", "lint", "Find faulty launch commands in scripts and documents."),
    "rules": Verb("rules", "rules", "List the rules."),
    "new-check": Verb("new_check", "new_check", "Write the skeleton of a new check."),
}


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs, the most used first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The click command of a verb, None for no verb."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        from importlib import import_module

        command = getattr(import_module(f"mgpu_doctor.cli.{verb.module}"), verb.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a suggestion for a mistyped verb, and a hint for a command without a verb."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else 'For a launch command: mgpu-doctor explain "COMMAND"'
            ctx.fail(f"no verb is called {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The verbs with their one-line help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 nothing at or above --fail-on, 1 findings, 2 bad usage or input, 3 incomplete.",
)
@click.version_option(__version__, "-V", "--version", prog_name="mgpu-doctor", message="%(prog)s %(version)s")
def program() -> None:
    """The doctor for multi-GPU launch commands: says what would really happen, and what is wrong with it.

    \b
    mgpu-doctor explain "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py"
    mgpu-doctor check -- torchrun --nproc-per-node 4 train.py
    mgpu-doctor lint scripts/ README.md
    mgpu-doctor explain MGD201
    """  # noqa: D301


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code; nothing but an exit code leaves it."""
    try:
        code = program.main(list(arguments), prog_name="mgpu-doctor", standalone_mode=False)
    except click.ClickException as error:
        _complain(error.format_message(), _click_hint(error))
        return USAGE_EXIT
    except MgpuDoctorError as error:
        _complain(error.message, error.hint)
        return USAGE_EXIT
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPT_EXIT
    return code if isinstance(code, int) else 0


def _click_hint(error: click.ClickException) -> str | None:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return None
    if (
        isinstance(error, click.NoSuchOption)
        and error.ctx.command.name in ("explain", "check")
        and not error.possibilities
    ):
        return "is it the launcher's own option? Put the whole command in quotes, or -- in front of it"
    return f"see {error.ctx.command_path} --help"


def _complain(message: str, hint: str | None) -> None:
    from mgpu_doctor.render.clean import shown

    lines = [f"mgpu-doctor: error: {shown(message)}"]
    if hint:
        lines.append(f"  hint: {shown(hint)}")
    try:
        print("\n".join(lines), file=sys.stderr)
    except OSError:
        # Nobody listens any more; the exit code still says it.
        return
