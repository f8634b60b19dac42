"""Launch commands in the documentation of Python files: docstrings, usage texts, comments.

Fenced blocks are read as in Markdown. Elsewhere a line counts that is a whole launch command, alone or behind
``$`` or ``Usage:``, together with the lines that it is continued on; a sentence about a launcher does not.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.passage import Passage, anchors_of, excerpt_of, joined
from mgpu_doctor.read.python_literals import Lines

_NAMES = (
    r"torchrun|torch\.distributed\.(?:run|launch)|accelerate|deepspeed|llamafactory-cli|lmf|swift|axolotl|xtuner"
    r"|colossalai|horovodrun|mpirun|mpiexec|srun|tune"
)
NAMES_LAUNCHER = pattern(rf"(?<![\w.-])(?:{_NAMES})(?![\w=.-])")
PROSE = pattern(
    r"(?<!\S)(?:to|for|the|is|are|was|with|or|and|will|can|which|that|you"
    r"|your|we|if|by|does|doesn't|does not|use|uses|using"
    r"|requires?|should|must|when|not|has|have|as|an?|of|on|instead|only|because|launcher)(?!\S)"
)
_LAUNCH_LINE = pattern(
    r"(?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|[^\s'\"])*[ \t]+)*"
    r"(?:(?:nohup|sudo|time|exec|env|srun|mpirun|mpiexec|timeout|uv run|poetry run|conda run|numactl)"
    r"(?:[ \t]+(?:-\S+|[A-Za-z_]\w*=\S*|\d\S*))*[ \t]+)*"
    r"(?:\S*/)?(?:(?P<launcher>torchrun|accelerate(?:-launch|[ \t]+launch)|deepspeed(?:\.pt)?|llamafactory-cli|lmf"
    r"|swift|axolotl|xtuner|colossalai[ \t]+run|horovodrun|tune[ \t]+run)(?=[ \t])"
    r"|(?P<python>python[\d.]*)(?=[ \t]))(?P<rest>[^\n]*)"
)
_LEAD = pattern(
    r"(?:[$>%#][ \t]+|>>>[ \t]+|!|[-*][ \t]+|(?:usage|example|examples|run|launch|e\.g\.|run with|command|launch with)"
    r"[ \t]*:[ \t]*)*",
    re.IGNORECASE,
)
_FENCE = pattern(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_COMMENT = pattern(r"^(?P<lead>[ \t]*#+(?!!)[ \t]?)(?P<text>[^\n]*)$", re.MULTILINE)


def in_document(source: Source, passage: Passage) -> Iterator[Excerpt]:
    """Commands in a docstring: what Markdown takes from it, and lines of their own that are a whole launch."""
    from mgpu_doctor.read import markdown

    text = passage.text
    within = Excerpt(source, text, (*anchors_of(passage.places), (len(text), passage.span.end)))
    own = Source(source.name, text, "markdown", source.path, 1, within)
    taken: list[Span] = []
    for excerpt in markdown.excerpts(own):
        # Docstrings are indented, and a command named in a sentence is no instruction: fences alone count.
        fences = len(_FENCE.findall(text, 0, excerpt.locate(0, 1).start))
        if fences % 2 and _names_launch(excerpt.text):
            span = excerpt.locate(0, len(excerpt.text))
            taken.append(span)
            yield excerpt
    yield from _launch_lines(own, [match.span() for match in re.finditer(r"[^\n]+", text)], taken)


def _names_launch(text: str) -> bool:
    """Whether a shell text holds more than plain ``python``: a launcher, or the choice of a card."""
    return NAMES_LAUNCHER.search(text) is not None or "CUDA_VISIBLE_DEVICES=" in text


def _launch_lines(own: Source, lines: Sequence[tuple[int, int]], taken: Sequence[Span]) -> Iterator[Excerpt]:
    """Lines that are a launch command, with the lines that they are continued on."""
    at = 0
    while at < len(lines):
        start, end = lines[at]
        line = own.text[start:end].rstrip()
        begin = start + len(line) - len(line.lstrip())
        lead = _LEAD.match(own.text, begin, end)
        begin = lead.end() if lead is not None else begin
        match = _LAUNCH_LINE.match(own.text, begin, end)
        at += 1
        if match is None or any(span.start <= begin < span.end for span in taken):
            continue
        parts = [Passage.of(own.text, begin, start + len(line))]
        while parts[-1].text.endswith("\\") and at < len(lines):
            start, end = lines[at]
            parts.append(Passage.of(own.text, start, start + len(own.text[start:end].rstrip())))
            at += 1
        whole = joined(parts, "\n")
        if _is_written_out(match, whole.text):
            excerpt = excerpt_of(own, whole)
            if excerpt is not None:
                yield excerpt


def _is_written_out(match: re.Match[str], text: str) -> bool:
    """Whether a line that begins with a launcher is a command and no sentence about one."""
    flat = " ".join(part.strip().rstrip("\\") for part in text.split("\n"))
    rest = (
        flat[match.end("launcher") - match.start() :]
        if match["launcher"]
        else flat[match.end("python") - match.start() :]
    )
    first = rest.split("\n")[0]
    if (
        PROSE.search(first)
        or re.search(r"[a-z]\.$|:$|,$", first.strip())
        or first.lstrip().startswith(("=", "(", ",", ":"))
    ):
        return False
    words = rest.split()
    if match["python"]:
        if re.match(r"\s+(?:-u\s+)?-m\s+(?:torch\.distributed\.(?:run|launch)|accelerate\.commands\.launch)\s", rest):
            return len(words) > 2
        before = flat[: match.start("python") - match.start()]
        chosen = "CUDA_VISIBLE_DEVICES=" in before or re.search(r"(?:^|[\s/])(?:mpirun|mpiexec|srun)\s+-", before)
        return bool(chosen) and re.match(r"\s+(?:-u\s+)?\S+\.py\b", rest) is not None
    launcher = match["launcher"].split()[0]
    if launcher in (
        "torchrun",
        "accelerate",
        "accelerate-launch",
        "deepspeed",
        "deepspeed.pt",
        "horovodrun",
        "colossalai",
    ):
        return re.search(r"\.py\b|\s(?:-m|--module)\s+\w|\.sh\b", rest) is not None or (
            words[:1] != [] and words[0].startswith("--") and re.search(r"<[\w ./-]+>|\$\w", rest) is not None
        )
    return (
        len(words) > 1
        and "`" not in rest
        and re.fullmatch(r"[a-z][\w-]*", words[0]) is not None
        and re.search(r"\s-|\.ya?ml|\.json|\.py|=", rest) is not None
    )


def in_comments(source: Source, tree: ast.Module) -> Iterator[Excerpt]:
    """Comments that are a launch command."""
    text = source.text
    if not any(NAMES_LAUNCHER.search(m["text"]) or "CUDA_VISIBLE" in m["text"] for m in _COMMENT.finditer(text)):
        return
    lines = Lines(text)
    strings = sorted(
        lines.span(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Constant, ast.JoinedStr))
        and node.end_lineno != node.lineno
        and (isinstance(node, ast.JoinedStr) or isinstance(node.value, str))
    )
    starts = [span.start for span in strings]
    block: list[re.Match[str]] = []
    for match in _COMMENT.finditer(text):
        index = bisect_right(starts, match.start()) - 1
        if any(span.start <= match.start() < span.end for span in strings[max(index - 3, 0) : index + 1]):
            continue
        if block and match.start() != block[-1].end() + 1:
            yield from _comment_block(source, block)
            block = []
        block.append(match)
    yield from _comment_block(source, block)


def _comment_block(source: Source, block: Sequence[re.Match[str]]) -> Iterator[Excerpt]:
    """The commands in comments on consecutive lines."""
    if not block:
        return
    passage = joined(
        [Passage.of(source.text, m.start("text"), m.start("text") + len(m["text"].rstrip())) for m in block], "\n"
    )
    text = passage.text
    if not text.strip():
        return
    within = Excerpt(source, text, (*anchors_of(passage.places), (len(text), passage.span.end)))
    own = Source(source.name, text, "markdown", source.path, 1, within)
    yield from _launch_lines(own, [match.span() for match in re.finditer(r"[^\n]+", text)], ())
