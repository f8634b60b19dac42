"""The environment that reaches a launcher: what its command sets, and what it inherits."""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.launchers.chain import Context
from mgpu_doctor.model.command import Variable, Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, Release
from mgpu_doctor.model.version import is_before


def read_variable(context: Context, name: str, set_by_layers: Iterable[Variable] = ()) -> Setting[str | None]:
    """A variable's text as the process at this depth sees it.

    The value is None when the variable is known to be unset, and
    :class:`Unknown` when its text or the whole environment is not known. ``set_by_layers`` are those that
    outer launchers set for their children, the innermost last.
    """
    for variable in reversed((*context.command.environment, *set_by_layers)):
        if variable.name == name:
            return _written(variable)
    if context.command.unset_all:
        return Setting(None, Origin("derived", "env -i starts from an empty environment"))
    inherited = context.facts.environment
    if isinstance(inherited, Unknown):
        return Setting(Unknown(f"{name} may be inherited: {inherited.reason}"), Origin("facts", "environment"))
    return Setting(inherited.get(name), Origin("variable" if name in inherited else "facts", name))


def _written(variable: Variable) -> Setting[str | None]:
    origin = Origin("variable", variable.name, variable.location)
    if variable.value is None:
        return Setting(None, origin)
    text = variable.value.value
    if text is None:
        return Setting(Unknown(f"{variable.name}={variable.value.written} is not known here"), origin)
    return Setting(text, origin)


def given_option(layer: Layer, context: Context, dest: str) -> Setting[object] | None:
    """The value that the command line gives for ``dest``, the last one winning; None when it gives none."""
    option = layer.option(dest)
    if option is None:
        return None
    earlier = layer.options_for(dest)[:-1]
    overrides: Setting[object] | None = None
    if earlier:
        before = earlier[-1]
        overrides = Setting(before.converted, Origin("option", before.flag, context.command.locate(before.span)))
    origin = Origin("option", option.flag, context.command.locate(option.span), overrides)
    return Setting(option.converted, origin)


def whole_number(value: object) -> int | None:
    """An int, or a text or float that is one; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None


def as_number(setting: Setting[object] | Setting[str | None], what: str) -> Setting[int]:
    """The setting as a whole number, Unknown with the reason when it is none."""
    value = setting.value
    if isinstance(value, Unknown):
        return Setting(value, setting.origin)
    number = whole_number(value)
    if number is None:
        return Setting(Unknown(f"{what} is {value!r}, which is no whole number"), setting.origin)
    return Setting(number, setting.origin)


def as_text(setting: Setting[object] | Setting[str | None]) -> Setting[str]:
    """The setting as text."""
    value = setting.value
    return Setting(value if isinstance(value, Unknown) else str(value), setting.origin)


def times(outer: Setting[int], inner: Setting[int]) -> Setting[int]:
    """A launcher that is itself started N times starts N times its processes."""
    if outer.known == 1:
        return inner
    if isinstance(outer.value, Unknown):
        return Setting(outer.value, inner.origin)
    if isinstance(inner.value, Unknown):
        return inner
    detail = f"{outer.value} × {inner.value}: the launcher itself is started {outer.value} times"
    return Setting(outer.value * inner.value, Origin("derived", detail, inner.origin.location))


def release_label(release: Release | None, package: str) -> str:
    """``torch 2.6.0``, or the bare name when the version is not known."""
    return f"{package} {release.version}" if release is not None and release.version else package


def release_before(release: Release | None, *version: int) -> bool:
    """Whether a release is known to be older than ``version``; False when it is not known."""
    return release is not None and is_before(release.version, *version) is True


def program_name(word: Word) -> str | None:
    """The last part of a program's path; ``$(which NAME)`` counts as NAME; None when it is not known."""
    text = word.value
    if text is None:
        written = word.written.strip()
        if written.startswith("$(") and written.endswith(")"):
            inner = written[2:-1].split()
            if len(inner) > 1 and inner[0] in ("which", "command", "type"):
                return inner[-1].rpartition("/")[2]
        last = word.pieces[-1].text if word.pieces else None
        if last is None or "/" not in last:
            return None
        text = last
    return text.replace("\\", "/").rpartition("/")[2].removesuffix(".exe")
