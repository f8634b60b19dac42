"""Commands in documents: fenced and literal blocks, transcripts with prompts, inline code.

Markdown as in CommonMark 0.31 (fences, block quotes, list items), reStructuredText as in docutils 0.21
(``code-block``, ``code``, ``sourcecode``, ``prompt``, ``parsed-literal`` directives and ``::`` blocks).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source

SHELL_LANGUAGES = frozenset(
    {
        "bash",
        "sh",
        "shell",
        "zsh",
        "ksh",
        "dash",
        "shellscript",
        "shell-script",
        "console",
        "shell-session",
        "shellsession",
        "sh-session",
        "terminal",
        "bash-session",
        "commandline",
        "command-line",
        "cli",
        "cmd",
        "slurm",
        "sbatch",
    }
)
PLAIN_LANGUAGES = frozenset({"", "text", "txt", "plain", "plaintext", "none", "code", "default", "raw"})

PYTHON_LANGUAGES = frozenset({"python", "py", "python3", "ipython", "ipython3", "jupyter"})

EMBEDDED = frozenset({"yaml", "yml", "dockerfile", "docker", "makefile", "make", "just", "justfile"})
"""Languages whose own readers find the commands in a block."""
_NAMED = pattern(r"torchrun|accelerate|deepspeed|llamafactory|python|swift|axolotl|tune run")

_FENCE = pattern(
    r"(?P<before>(?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)"
)
_QUOTE = pattern(r"(?:[ \t]{0,3}>[ ]?)+")
_LANGUAGE = pattern(r"\{?\s*\.?(?:code-block\}\s*)?([A-Za-z][\w+-]*)?")
_PROMPT = pattern(
    r"(?:\([\w.-]+\)[ \t]*)?(?:[\w.-]+@[\w.-]+(?::[^\s$#]*)?[ \t]*|\[[^\]\n]+\][ \t]*)?[$❯➜][ \t]+|!(?=[A-Za-z./])"
)
_MORE_PROMPT = pattern(r">[ \t]+")
_SETTINGS = r"(?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|[^\s'\"])*[ \t]+)*"
_STARTERS = (
    r"(?:(?:nohup|sudo|time|exec|env|srun|mpirun|mpiexec|timeout|uv run|poetry run|conda run|pixi "
    r"run|numactl|bash -c|docker run)"
    r"(?:[ \t]+(?:-[^\s]+|[A-Za-z_]\w*=\S*|\d\S*))*[ \t]+)*"
)
_LAUNCHER = (
    r"(?:torchrun|accelerate(?:-launch|[ "
    r"\t]+launch)|deepspeed(?:\.pt)?|llamafactory-cli|lmf|swift|axolotl|xtuner|tune[ \t]+run"
    r"|colossalai|horovodrun|composer|ray[ \t]+job[ \t]+submit|(?:[^\s`'\"]*/)?python[\d.]*)(?=[ \t]|$)"
)
_INLINE = pattern(r"(?<!`)(`{1,2})(?!`)(?P<code>[^`\n]+?)(?<!`)\1(?!`)")
_RST_DIRECTIVE = pattern(
    r"(?P<indent>[ \t]*)\.\.[ \t]+(?P<name>code-block|code|sourcecode|prompt|parsed-literal)::[ "
    r"\t]*(?P<language>[\w+-]*)"
)


class Line(NamedTuple):
    """A line of a block: its text, and where that stands in the source."""

    text: str
    start: int


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The shell texts in a document, in order.

    Blocks in a shell language are taken as they are; blocks without a language, or called Python that
    they are not, and inline code, only when they begin like a launch command. In a transcript the
    lines with a prompt and their continuations are taken.
    """
    found = list(_rst_blocks(source) if source.kind == "rst" else _markdown_blocks(source))
    return tuple(sorted(found, key=lambda excerpt: excerpt.anchors[0][1]))


def _lines(text: str) -> list[Line]:
    out = []
    at = 0
    for raw in text.split("\n"):
        out.append(Line(raw.removesuffix("\r"), at))
        at += len(raw) + 1
    return out


# ---------------------------------------------------------------- Markdown


def _markdown_blocks(source: Source) -> Iterator[Excerpt]:
    lines = _lines(source.text)
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at].text)
        if fence and not (fence["fence"][0] == "`" and "`" in fence["info"]):
            block, at = _fenced(lines, at, fence)
            language = _language(fence["info"])
            yield from _block(source, block, language)
            continue
        end = _indented_end(lines, at)
        if end > at:
            yield from _block(source, [_unindented(line, 4) for line in lines[at:end]], "")
            at = end
            continue
        yield from _inline(source, lines[at])
        at += 1


def _language(info: str) -> str:
    """The first word of a fence's info string, as a language's name."""
    match = _LANGUAGE.match(info.strip())
    return (match.group(1) or "").lower() if match else ""


def _fenced(lines: Sequence[Line], at: int, fence: re.Match[str]) -> tuple[list[Line], int]:
    """The lines inside a fence, and the index behind it. A quotation that ends closes its fences."""
    mark = fence["fence"]
    quoted = ">" in fence["before"]
    indent = len(fence["before"]) if not quoted else len(fence["before"].rsplit(">", 1)[1].lstrip(" ")) + 1
    closing = re.compile(rf"[ \t]*{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$")
    block: list[Line] = []
    at += 1
    while at < len(lines):
        line = lines[at]
        if quoted:
            prefix = _QUOTE.match(line.text)
            if prefix is None:
                return block, at
            line = Line(line.text[prefix.end() :], line.start + prefix.end())
        if closing.match(line.text):
            return block, at + 1
        block.append(_unindented(line, indent))
        at += 1
    return block, at


def _unindented(line: Line, columns: int) -> Line:
    taken = width = 0
    while taken < len(line.text) and width < columns and line.text[taken] in " \t":
        width += 4 if line.text[taken] == "\t" else 1
        taken += 1
    return Line(line.text[taken:], line.start + taken)


def _indented_end(lines: Sequence[Line], at: int) -> int:
    """The end of an indented code block that begins at ``at``; ``at`` itself when none does."""
    if not re.match(r"(?: {4}|\t)\s*\S", lines[at].text) or (at and lines[at - 1].text.strip()):
        return at
    before = at - 1
    while before >= 0 and (not lines[before].text.strip() or lines[before].text[:1] in " \t"):
        if re.match(r"\s*(?:[-*+]|\d{1,9}[.)])[ \t]", lines[before].text):
            return at
        before -= 1
    if before >= 0 and re.match(r"\s*(?:[-*+]|\d{1,9}[.)])[ \t]", lines[before].text):
        return at
    end = at
    while end < len(lines) and re.match(r"(?: {4}|\t)\s*\S", lines[end].text):
        end += 1
    return end


def _inline(source: Source, line: Line) -> Iterator[Excerpt]:
    """Inline code that is a whole launch command."""
    if "`" not in line.text:
        return
    for match in _INLINE.finditer(line.text):
        code = match["code"]
        if whole_command(code):
            text = code.strip()
            start = line.start + match.start("code") + code.index(text)
            yield Excerpt(source, text, ((0, start),), "bash")


def whole_command(code: str) -> bool:
    """Whether inline code is a command that could be typed, rather than the mention of one."""
    text = code.strip()
    prompt = _PROMPT.match(text)
    if prompt:
        text = text[prompt.end() :]
    start = re.match(_SETTINGS + _STARTERS + _LAUNCHER, text)
    if start is None:
        return False
    words = text[start.end() :].split()
    if any(word in ("...", "…") or word.startswith(("<", "[")) for word in words[:1]):
        return False
    launcher = start.group().split()[-1]
    operands = [word for word in words if not word.startswith("-")]
    if "python" in launcher:
        target = words[0] if words else ""
        if target == "-m":
            return len(words) > 2 and words[1].startswith(
                ("torch.distributed", "accelerate", "llamafactory", "deepspeed")
            )
        return target.endswith(".py") and len(words) > 1 and not target.endswith("setup.py")
    if launcher in (
        "run",
        "swift",
        "axolotl",
        "xtuner",
        "colossalai",
        "composer",
        "horovodrun",
        "lmf",
        "llamafactory-cli",
    ):
        return len(words) > 1
    return any(word.endswith((".py", ".sh", ".yaml")) or "-m" in words for word in operands)


# ---------------------------------------------------------------- blocks


def _block(source: Source, lines: list[Line], language: str) -> Iterator[Excerpt]:
    """The excerpts of one block."""
    if language in EMBEDDED:
        yield from _embedded(source, lines, language)
        return
    if language in SHELL_LANGUAGES:
        console = any(_PROMPT.match(line.text) for line in lines)
    elif language in PLAIN_LANGUAGES:
        if not begins_like_a_launch(lines):
            return
        console = any(_PROMPT.match(line.text) for line in lines)
    elif language in PYTHON_LANGUAGES:
        # A notebook's cell hands lines with ! to a shell; and some documents call every block Python.
        cell = begins_like_a_launch([line for line in lines if line.text.startswith("!")])
        if not cell and (not begins_like_a_launch(lines) or is_python(lines)):
            return
        console = cell or any(_PROMPT.match(line.text) for line in lines)
    else:
        return
    if console:
        lines = _typed(lines)
    excerpt = _excerpt(source, lines, "console" if console else "bash")
    if excerpt is not None:
        yield excerpt


def _embedded(source: Source, lines: list[Line], language: str) -> Iterator[Excerpt]:
    """The commands in a block of YAML or of another language that holds some."""
    block = _excerpt(source, lines, language)
    if block is not None and _NAMED.search(block.text):
        from mgpu_doctor.read.embedded import LANGUAGES, commands_in_block

        yield from commands_in_block(block, LANGUAGES[language])


def begins_like_a_launch(lines: Sequence[Line]) -> bool:
    """Whether a line begins like a launch command, and nothing shows that it is a program or its output."""
    pattern = re.compile(_SETTINGS + _STARTERS + _LAUNCHER + r"[ \t]+\S")
    for line in lines:
        text = line.text.lstrip()
        prompt = _PROMPT.match(text)
        if pattern.match(text[prompt.end() :] if prompt else text):
            return not any(
                re.match(r"(?:import |from \w+ import|def |class |Traceback )", other.text) for other in lines
            )
    return False


def is_python(lines: Sequence[Line]) -> bool:
    """Whether a block that holds a line like a launch command is Python all the same (``deepspeed = 2``)."""
    import ast
    import textwrap
    import warnings

    if any(re.match(r"\s*" + _LAUNCHER + r"[ \t]*[=,:.(\[)]", line.text) for line in lines):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(textwrap.dedent("\n".join(line.text for line in lines)))
        except (SyntaxError, ValueError):
            return False
        except (RecursionError, MemoryError):
            return True
    return True


def _typed(lines: Sequence[Line]) -> list[Line]:
    """The lines of a transcript that somebody typed, without their prompts; the others empty, so that nothing joins."""
    out: list[Line] = []
    goes_on = False
    for line in lines:
        prompt = _PROMPT.match(line.text.lstrip())
        if prompt and not goes_on:
            skipped = len(line.text) - len(line.text.lstrip()) + prompt.end()
            typed = Line(line.text[skipped:], line.start + skipped)
        elif goes_on:
            more = _MORE_PROMPT.match(line.text)
            typed = Line(line.text[more.end() :], line.start + more.end()) if more else line
        else:
            continue
        out.append(typed)
        goes_on = typed.text.rstrip(" \t").endswith("\\")
    return out


def _excerpt(source: Source, lines: Sequence[Line], language: str) -> Excerpt | None:
    """Lines as one text with the way back."""
    if not any(line.text.strip() for line in lines):
        return None
    parts: list[str] = []
    anchors: list[tuple[int, int]] = []
    at = 0
    for line in lines:
        anchors.append((at, line.start))
        parts.append(line.text)
        at += len(line.text) + 1
        # The newline itself: behind the text, and behind a carriage return that was left out.
        anchors.append((at - 1, min(line.start + len(line.text), len(source.text))))
    return Excerpt(source, "\n".join(parts), tuple(anchors), language)


# ---------------------------------------------------------------- reStructuredText


def _rst_blocks(source: Source) -> Iterator[Excerpt]:
    lines = _lines(source.text)
    at = 0
    while at < len(lines):
        line = lines[at]
        directive = _RST_DIRECTIVE.match(line.text)
        if directive:
            language = directive["language"].lower()
            if directive["name"] in ("prompt", "parsed-literal") and not language:
                language = "bash" if directive["name"] == "prompt" else ""
            block, at = _rst_body(lines, at + 1, len(directive["indent"].expandtabs()))
            yield from _block(source, block, language)
            continue
        if line.text.rstrip().endswith("::") and not line.text.lstrip().startswith(".."):
            block, end = _rst_body(lines, at + 1, len(line.text) - len(line.text.lstrip()))
            if block:
                yield from _block(source, block, "")
                at = end
                continue
        yield from _inline(source, line)
        at += 1


def _rst_body(lines: Sequence[Line], at: int, indent: int) -> tuple[list[Line], int]:
    """The indented lines behind a directive, its options left out."""
    block: list[Line] = []
    width: int | None = None
    options = True
    while at < len(lines):
        text = lines[at].text
        stripped = text.lstrip()
        if stripped:
            own = len(text.expandtabs()) - len(text.expandtabs().lstrip())
            if own <= indent:
                break
            if options and width is None and re.match(r":[\w-]+:", stripped):
                at += 1
                continue
            if width is None:
                width = own
        options = options and not (stripped and not stripped.startswith(":"))
        if width is not None:
            block.append(_unindented(lines[at], width))
        at += 1
    while block and not block[-1].text.strip():
        block.pop()
    return block, at
