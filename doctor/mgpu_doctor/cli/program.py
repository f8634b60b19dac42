"""The verbs for click: help, messages about mistakes, and every spelling that click takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from mgpu_doctor import __version__
from mgpu_doctor.cli.edge import INTERRUPT_EXIT
from mgpu_doctor.cli.verb import VERBS, Given, Option, Verb, load_verb
from mgpu_doctor.errors import UsageError

_EXIT_STATUS = "Exit status: 0 nothing at or above --fail-on, 1 findings, 2 bad usage or input, 3 incomplete."


class VerbCommand(click.Command):
    """A verb as click sees it. A launch command behind ``--`` is cut off first and left untouched."""

    def __init__(self, verb: Verb) -> None:
        parameters: list[click.Parameter] = [_parameter(option) for option in verb.options]
        parameters.append(click.Argument(["words"], nargs=-1, metavar=verb.words))
        epilog = "\b\n" + "\n".join(verb.examples) if verb.examples else None
        super().__init__(verb.name, params=parameters, callback=self._call, help=verb.help, epilog=epilog)
        self.verb = verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the arguments at the first ``--``."""
        ctx.obj = ()
        if self.verb.dashes and "--" in args:
            at = args.index("--")
            args, ctx.obj = args[:at], tuple(args[at + 1 :])
            if not ctx.obj:
                ctx.fail("nothing stands behind --")
        return super().parse_args(ctx, args)

    def _call(self, words: tuple[str, ...], **options: Any) -> int:
        context = click.get_current_context()
        verb = self.verb
        if len(words) < verb.least_words:
            context.fail(f"missing {verb.words}")
        if verb.most_words is not None and len(words) > verb.most_words:
            context.fail(f"unexpected argument {words[verb.most_words]!r}")
        return verb.run(Given(words, context.obj, options))


def _parameter(option: Option) -> click.Option:
    if option.metavar is None:
        return click.Option([option.flag, option.name], is_flag=True, help=option.help)
    return click.Option(
        [option.flag, option.name],
        metavar="|".join(option.choices) or option.metavar,
        type=click.Choice(option.choices) if option.choices else str,
        multiple=option.many,
        required=option.required,
        help=option.help,
    )


class Program(click.Group):
    """The group of verbs; a verb's module is imported only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs, the most used first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """A verb for click, None for no verb."""
        return VerbCommand(load_verb(cmd_name)) if cmd_name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a suggestion for a mistyped verb, and a hint for a command without a verb."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else 'for a launch command: mgpu-doctor explain "COMMAND"'
            raise UsageError(f"no verb is called {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The verbs with their one-line help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, place.help) for name, place in VERBS.items()])


_HELP = """The doctor for multi-GPU launch commands: says what would really happen, and what is wrong with it.

\b
mgpu-doctor explain "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py"
mgpu-doctor check -- torchrun --nproc-per-node 4 train.py
mgpu-doctor lint scripts/ README.md
mgpu-doctor explain MGD201
"""


def build() -> click.Group:
    """The whole program for click."""
    program = Program(
        "mgpu-doctor",
        help=_HELP,
        epilog=_EXIT_STATUS,
        subcommand_metavar="VERB ...",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    version = click.version_option(
        __version__, "-V", "--version", prog_name="mgpu-doctor", message="%(prog)s %(version)s"
    )
    return version(program)


def run_with_click(arguments: Sequence[str]) -> int:
    """Run the program as click reads the command line.

    Raises:
        UsageError: click does not understand the line.
    """
    try:
        code = build().main(list(arguments) or ["--help"], prog_name="mgpu-doctor", standalone_mode=False)
    except click.Abort:
        return INTERRUPT_EXIT
    except click.ClickException as error:
        raise UsageError(error.format_message().rstrip("."), hint=_hint(error)) from error
    return code if isinstance(code, int) else 0


def _hint(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return None
    command = context.command
    if isinstance(error, click.NoSuchOption) and isinstance(command, VerbCommand) and command.verb.dashes:
        return (
            f"the launch command's own? Then -- in front of that, or quotes around; else {context.command_path} --help"
        )
    return f"see {context.command_path} --help"
