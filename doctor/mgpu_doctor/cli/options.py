"""The options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from mgpu_doctor.cli.output import FORMATS

FAIL_ON = ("error", "warning", "advice", "never")


class Shared(NamedTuple):
    """The shared options as given; None or empty where one is absent."""

    format: str | None
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    fail_on: str | None
    facts: str | None
    show_commands: bool
    colour: bool


_OPTIONS = (
    click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: rich on a terminal, else plain."),
    click.option(
        "--select", multiple=True, metavar="RULES", help="Only these rules: codes, slugs, families (MGD3), commas."
    ),
    click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules; wins over --select."),
    click.option(
        "--fail-on",
        type=click.Choice(FAIL_ON),
        help="The least severity that makes the exit status 1. Default: error.",
    ),
    click.option(
        "--facts", metavar="FILE|none", help="The machine as a facts file; none judges the text alone. [default: here]"
    ),
    click.option("--show-commands", is_flag=True, help="Also say what each launch command would do."),
    click.option("--no-color", is_flag=True, help="No colour (as NO_COLOR does)."),
)


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the shared options; it receives them as one ``shared`` argument."""
    from functools import wraps

    @wraps(function)
    def with_shared(*args: Any, **kwargs: Any) -> Any:
        shared = Shared(
            kwargs.pop("format_"),
            _split(kwargs.pop("select")),
            _split(kwargs.pop("ignore")),
            kwargs.pop("fail_on"),
            kwargs.pop("facts"),
            kwargs.pop("show_commands"),
            not kwargs.pop("no_color"),
        )
        return function(*args, shared=shared, **kwargs)

    wrapped: Callable[..., Any] = with_shared
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


class CommandBehindDashes(click.Command):
    """A verb that takes a launch command behind ``--``, untouched; it receives it as ``behind``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the arguments at the first ``--``."""
        at = args.index("--") if "--" in args else None
        ctx.params["behind"] = () if at is None else tuple(args[at + 1 :])
        if at is not None and at + 1 == len(args):
            ctx.fail("nothing stands behind --")
        return super().parse_args(ctx, args[:at] if at is not None else args)
