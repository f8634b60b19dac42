"""YAML and JSON configuration files, with the place of every key and value.

YAML is read as PyYAML's ``safe_load`` does (YAML 1.1: an unquoted ``NO`` is False, ``1e-4`` is a
string), because that is what accelerate 1.7.0 (commands/config/config_args.py from_yaml_file), LLaMA-Factory
0.9.3 (hparams/parser.py read_args) and transformers read it with; JSON as the ``json`` module does. A file
whose name ends in ``.json`` is JSON, every other is YAML, as accelerate decides it (load_config_from_file).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.program import ConfigFile, ConfigValue
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Source, Span

if TYPE_CHECKING:
    import yaml

MAX_VALUES = 20_000
"""Entries read from one file; aliases can make a small file stand for billions."""

MAX_DEPTH = 60

MOST_MARKS = 40_000
"""Lines and commas of a YAML file that are still taken for a configuration: PyYAML reads some fifty a millisecond."""

_BLANKS = pattern(r"[ \t\r\n]*")
_SCALAR = pattern(r"[^\s,\]}]+")


def read_config(source: Source, role: str) -> ConfigFile:
    """The file's values by path of keys. What keeps it from being read is in ``problem``, with its place."""
    try:
        if source.name.endswith(".json") or source.kind == "json":
            return _read_json(source, role)
        return _read_yaml(source, role)
    except RecursionError:
        return _broken(source, role, "it is nested too deeply", None, unseen=True)


def unread_config(name: str, role: str, reason: str, exists: bool | Unknown, *, unseen: bool = False) -> ConfigFile:
    """A file that is not there, or that cannot be read."""
    return ConfigFile(role, name, None, {}, problem=reason, exists=exists, unseen=unseen)


def _broken(source: Source, role: str, problem: str, offset: int | None, *, unseen: bool = False) -> ConfigFile:
    span = None
    if offset is not None:
        offset = max(0, min(offset, len(source.text)))
        span = Span(offset, min(offset + 1, len(source.text)))
    return ConfigFile(role, source.name, source, {}, problem=problem, problem_span=span, unseen=unseen)


@dataclass(slots=True)
class _Values:
    """The values found so far; refuses to grow without end."""

    found: dict[tuple[str, ...], ConfigValue] = field(default_factory=dict)
    full: bool = False
    repeated: list[ConfigValue] = field(default_factory=list)

    def put(self, path: tuple[str, ...], value: object, key: Span, span: Span, begin: int = 0) -> bool:
        """Keep an entry of the mapping that starts at ``begin``: what a merge key brought lies in front of it."""
        if len(self.found) >= MAX_VALUES or len(path) > MAX_DEPTH:
            self.full = True
            return False
        before = self.found.get(path)
        if before is not None and before.key_span != key and before.key_span.start >= begin:
            self.repeated.append(before)
        self.found[path] = ConfigValue(path, value, key, span)
        return True


def _done(source: Source, role: str, values: _Values, data: object) -> ConfigFile:
    if values.full:
        return _broken(source, role, "it holds too many values (aliases that multiply?)", None, unseen=True)
    if not isinstance(data, dict):
        what = "it is empty" if data is None else f"it holds a {type(data).__name__}, not keys and values"
        return ConfigFile(role, source.name, source, {}, data, what, Span(0, min(1, len(source.text))))
    return ConfigFile(role, source.name, source, values.found, data, repeated=tuple(values.repeated))


def _read_yaml(source: Source, role: str) -> ConfigFile:
    import yaml

    if source.text.count("\n") + source.text.count(",") > MOST_MARKS:
        return _broken(source, role, "it is too long for a configuration", None, unseen=True)
    base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = source.text.removeprefix("\ufeff")
    ahead = len(source.text) - len(text)
    try:
        loader = base(text)
    except yaml.reader.ReaderError as error:
        return _broken(source, role, f"a character that YAML does not allow: {error.reason}", error.position + ahead)
    try:
        node = loader.get_single_node()
        if node is None:
            return _done(source, role, _Values(), None)
        # Built once and kept by node, so that an alias costs nothing more however often it stands.
        data = loader.construct_object(node, deep=True)
        values = _Values()
        _walk_yaml(node, (), _Yaml(loader, source.text, ahead), values, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        parts = [part for part in (error.context, error.problem) if part]
        return _broken(source, role, ", ".join(parts) or "it is not valid YAML", mark.index + ahead if mark else None)
    except yaml.reader.ReaderError as error:
        return _broken(source, role, f"a character that YAML does not allow: {error.reason}", error.position + ahead)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return _broken(source, role, f"it is not valid YAML: {error}", None)
    finally:
        loader.dispose()
    return _done(source, role, values, data)


@dataclass(slots=True)
class _Yaml:
    """A loader that has built its values, and the way from its marks to offsets in the text."""

    loader: Any
    text: str
    ahead: int

    def value(self, node: yaml.Node) -> object:
        return self.loader.construct_object(node, deep=True)

    def span(self, node: yaml.Node) -> Span:
        if node.start_mark is None or node.end_mark is None:
            return Span(0, 0)
        start, end = node.start_mark.index + self.ahead, node.end_mark.index + self.ahead
        while end > start and self.text[end - 1 : end].isspace():
            end -= 1
        return Span(start, max(start, end))


def _walk_yaml(node: yaml.Node, path: tuple[str, ...], reader: _Yaml, values: _Values, above: tuple[int, ...]) -> None:
    """Every entry below a node; ``above`` are the nodes on the way, so that an alias of one of them ends it."""
    import yaml

    if id(node) in above or values.full:
        values.full = values.full or id(node) in above
        return
    above = (*above, id(node))
    entries: list[tuple[str, Span, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        entries = [(str(reader.value(key)), reader.span(key), value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(str(index), reader.span(value), value) for index, value in enumerate(node.value)]
    for key, span, value in entries:
        branch = (*path, key)
        if not values.put(branch, reader.value(value), span, reader.span(value), reader.span(node).start):
            return
        _walk_yaml(value, branch, reader, values, above)


def _read_json(source: Source, role: str) -> ConfigFile:
    text = source.text
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        message = error.msg[:1].lower() + error.msg[1:]
        if text.startswith("//", error.pos) or text.startswith(("#", "/*"), error.pos):
            message = "JSON has no comments"
        return _broken(source, role, message, error.pos)
    except ValueError as error:
        return _broken(source, role, str(error), None)
    values = _Values()
    _walk_json(text, _skip(text, 0), data, (), values)
    return _done(source, role, values, data)


def _walk_json(text: str, at: int, data: object, path: tuple[str, ...], values: _Values) -> int:
    """Find the places of a value that is known to be valid; answers with the offset behind it."""
    if text[at] == "{":
        for key, key_span, start, value in _members(text, at):
            end = start
            if values.put((*path, key), value, key_span, Span(start, start)):
                end = _walk_json(text, start, value, (*path, key), values)
                values.put((*path, key), value, key_span, Span(start, end))
        return _json_end(text, at)
    if text[at] == "[" and isinstance(data, list):
        inside = _skip(text, at + 1)
        for index, value in enumerate(data):
            if not values.put((*path, str(index)), value, Span(inside, inside), Span(inside, inside)):
                break
            end = _walk_json(text, inside, value, (*path, str(index)), values)
            values.put((*path, str(index)), value, Span(inside, inside), Span(inside, end))
            inside = _skip(text, end)
            if inside < len(text) and text[inside] == ",":
                inside = _skip(text, inside + 1)
    return _json_end(text, at)


def _members(text: str, at: int) -> Iterator[tuple[str, Span, int, object]]:
    """Key, its span, the value's offset and the value; of a key given twice the last value counts."""
    decoder = json.JSONDecoder()
    inside = _skip(text, at + 1)
    while inside < len(text) and text[inside] == '"':
        key, end = decoder.raw_decode(text, inside)
        start = _skip(text, _skip(text, end) + 1)
        value, behind = decoder.raw_decode(text, start)
        yield key, Span(inside, end), start, value
        inside = _skip(text, behind)
        if inside < len(text) and text[inside] == ",":
            inside = _skip(text, inside + 1)


def _json_end(text: str, at: int) -> int:
    if text[at] in '{["':
        return json.JSONDecoder().raw_decode(text, at)[1]
    match = _SCALAR.match(text, at)
    return match.end() if match is not None else at


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match is not None else at
