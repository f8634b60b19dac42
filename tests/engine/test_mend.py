from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.authoring import delete_words, insert, replace
from mgpu_doctor.mend import apply_edits, mended
from mgpu_doctor.model.finding import Edit, Finding, Fix, Severity
from mgpu_doctor.model.source import Location, Source, Span


def source_of(text: str) -> Source:
    return Source("<command>", text, "command")


def span_of(source: Source, text: str) -> Span:
    start = source.text.index(text)
    return Span(start, start + len(text))


def test_edits_are_applied_from_the_back() -> None:
    source = source_of("a b c")
    edits = [replace(source, Span(0, 1), "long"), insert(source, 5, "!"), replace(source, Span(2, 3), "")]
    assert apply_edits(source.text, edits) == "long  c!"


def test_of_two_edits_on_the_same_characters_the_first_wins() -> None:
    source = source_of("abcdef")
    edits = [replace(source, Span(1, 3), "X"), replace(source, Span(2, 5), "Y"), replace(source, Span(1, 3), "X")]
    assert apply_edits(source.text, edits) == "aXdef"


def test_a_fix_is_taken_whole_or_not_at_all() -> None:
    source = source_of("one two three")

    def finding(*edits: Edit, safe: bool = False) -> Finding:
        fix = Fix("f", tuple(edits), safe=safe)
        return Finding("MGD001", "s", Severity.ERROR, "m", Location(source, Span(0, 1)), fix=fix)

    first = finding(replace(source, Span(0, 3), "1"), safe=True)
    second = finding(replace(source, Span(0, 3), "I"), replace(source, Span(4, 7), "II"))
    third = finding(replace(source, Span(8, 13), "3"))
    assert mended([first, second, third], source) == "1 two 3"
    assert mended([first, second, third], source, only_safe=True) == "1 two three"


def test_words_are_deleted_with_their_blanks() -> None:
    source = source_of("run --a 1 --b 2 x")
    assert apply_edits(source.text, [delete_words(source, span_of(source, "--a 1"))]) == "run --b 2 x"
    assert apply_edits(source.text, [delete_words(source, span_of(source, "run"))]) == "--a 1 --b 2 x"


def test_a_deleted_line_of_a_continued_command_leaves_no_hole() -> None:
    source = source_of("run \\\n  --a 1 \\\n  --b 2\nnext\n")
    assert apply_edits(source.text, [delete_words(source, span_of(source, "--a 1"))]) == "run \\\n  --b 2\nnext\n"
    assert apply_edits(source.text, [delete_words(source, span_of(source, "--b 2"))]) == "run \\\n  --a 1\nnext\n"


@given(
    st.text(alphabet="ab \n\\", max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6), st.text("xy", max_size=2))),
)
def test_any_edits_leave_the_rest_untouched(text: str, raw: list[tuple[int, int, str]]) -> None:
    source = source_of(text)
    edits = []
    for at, length, new in raw:
        start = min(at, len(text))
        edits.append(Edit(source, Span(start, min(start + length, len(text))), new))
    result = apply_edits(text, edits)
    removed = {at for edit in edits for at in range(edit.span.start, edit.span.end)}
    survivors = [c for at, c in enumerate(text) if at not in removed]
    remaining = iter(result)
    assert all(c in remaining for c in survivors)
