"""Where a launch asks for FlashAttention: an option of the script, LLaMA-Factory's file, or the program's text."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import Edit, Launch, Location, Severity, Span, Unknown, dataclass, pattern, replace

WANTED = frozenset({"flash_attention_2", "flash_attn_2", "fa2", "flash_attn"})
IN_PROGRAM = pattern(r"(?:attn_implementation=['\"]?flash_attention_2['\"]?|use_flash_attention_2=True)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Request:
    """Where flash attention is asked for: the words for people, the place of the value, and what would do instead.

    ``severity`` is what it means when the package is missing: LLaMA-Factory goes on without it.
    """

    shown: str
    location: Location
    value_span: Span | None
    instead: str
    severity: Severity

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What chooses torch's own attention instead; empty when the value is not written out in one place."""
        if self.value_span is None:
            return ()
        return (replace(self.location.source, self.value_span, self.instead),)


def requests(launches: tuple[Launch, ...]) -> Iterator[tuple[Launch, Request]]:
    """Every request for FlashAttention-2, each place once, with the launch that makes it."""
    seen = set()
    for launch in launches:
        for request in _requests(launch):
            key = (request.location.source.name, request.location.span)
            if key not in seen:
                seen.add(key)
                yield launch, request


def _requests(launch: Launch) -> Iterator[Request]:
    llamafactory = launch.target.framework == "llamafactory"
    name = "flash_attn" if llamafactory else "attn_implementation"
    severity = Severity.WARNING if llamafactory else Severity.ERROR
    names = [name, "attn_impl"] if launch.target.framework == "swift" else [name]
    argument = launch.target.argument(*names)
    if argument is not None and argument.value in WANTED:
        word = argument.values[0]
        place = launch.command.locate(argument.span)
        span = word.span if word.origin is None else None
        yield Request(f"{argument.flag} {argument.value}", place, span, "sdpa", severity)
    for config in launch.target.configs:
        value, place_in_file = config.get(name), config.locate(name)
        if isinstance(value, str) and value in WANTED and place_in_file is not None:
            span = config.values[(name,)].span
            yield Request(f"{name}: {value}", place_in_file, span, "sdpa", severity)
    program = launch.target.program
    if not isinstance(program, Unknown):
        for seen in program.all("from-pretrained"):
            if IN_PROGRAM.search(seen.detail):
                place = program.locate(seen)
                text = program.source.slice(seen.span)
                at = text.find("flash_attention_2")
                start = seen.span.start + at
                quoted = at > 0 and text[at - 1] in "'\""
                span = Span(start, start + len("flash_attention_2")) if quoted else None
                yield Request("attn_implementation=flash_attention_2", place, span, "sdpa", severity)
