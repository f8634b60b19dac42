"""A rule's page in Markdown: what ``explain CODE`` shows and what ``docs/rules`` holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from mgpu_doctor.model.rule import Example, Rule


def page_name(rule: Rule) -> str:
    """The file name of a rule's page."""
    return f"{rule.code}-{rule.slug}.md"


def rule_page(rule: Rule, distribution: str = "mgpu-doctor") -> str:
    """The page as Markdown, ending in a newline."""
    return "\n".join(_lines(rule, distribution)).rstrip("\n") + "\n"


def _lines(rule: Rule, distribution: str) -> Iterator[str]:
    yield f"# {rule.code} {rule.slug}"
    yield ""
    by = "" if distribution == "mgpu-doctor" else f" · from {distribution}"
    yield f"**{rule.title}** · {rule.severity.value}{' · fixable' if rule.fixable else ''}{by}"
    yield ""
    yield rule.summary
    yield ""
    yield "## Why"
    yield ""
    yield rule.why.strip()
    yield ""
    if rule.fix:
        yield "## What to do"
        yield ""
        yield rule.fix.strip()
        yield ""
    yield "## Reported"
    yield ""
    for example in rule.bad:
        yield from _example(example)
    yield "## Not reported"
    yield ""
    for example in rule.good:
        yield from _example(example)
    yield "## Verified in"
    yield ""
    for source in rule.sources:
        yield f"- {source.where}: {source.fact}{' (seen by running it)' if source.ran else ''}"
    yield ""
    yield f"To accept it in one place: `# mgpu-doctor: ignore[{rule.code}] the reason`"


def _example(example: Example) -> Iterator[str]:
    yield f"### {example.title}"
    yield ""
    if example.command is not None:
        yield from _fenced(example.command, "bash")
    for name, text in example.files.items():
        yield f"`{name}`:"
        yield ""
        yield from _fenced(text, _language(name))
    if example.log is not None:
        yield from _fenced(example.log, "text")
    if example.observation is not None:
        yield "A probe that saw:"
        yield ""
        yield from _fenced("\n".join(_compact(example.observation)), "json")
    if example.facts is None:
        yield "Nothing is known about the machine."
        yield ""
    elif example.facts:
        yield "On a machine with:"
        yield ""
        yield from _fenced(json.dumps(dict(example.facts), ensure_ascii=False, indent=2), "json")


def _compact(document: Mapping[str, object]) -> Iterator[str]:
    """JSON with one line for each key, and for each object of a list."""
    yield "{"
    last = len(document) - 1
    for number, (key, value) in enumerate(document.items()):
        comma = "," if number < last else ""
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"  {json.dumps(key)}: ["
            rows = [f"    {json.dumps(item, ensure_ascii=False)}" for item in value]
            yield ",\n".join(rows)
            yield f"  ]{comma}"
        else:
            yield f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}{comma}"
    yield "}"


def _fenced(text: str, language: str) -> Iterator[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    yield fence + language
    # A carriage return in an example is the point of it, and Markdown would swallow it; a zero makes a file binary.
    yield text.replace("\r", "␍").replace("\0", "␀").rstrip("\n")
    yield fence
    yield ""


_LANGUAGES = {
    ".sh": "bash",
    ".bash": "bash",
    ".sbatch": "bash",
    ".slurm": "bash",
    ".py": "python",
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".md": "markdown",
    ".toml": "toml",
}


def _language(name: str) -> str:
    dot = name.rfind(".")
    return _LANGUAGES.get(name[dot:].lower(), "text") if dot >= 0 else "text"
