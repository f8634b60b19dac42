from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.render.excerpt import MOST_LINES, ExcerptLine, excerpt


def cut(text: str, marked: str, width: int = 80) -> tuple[ExcerptLine, ...]:
    start = text.index(marked)
    return excerpt(Location(Source("x.sh", text, "shell"), Span(start, start + len(marked))), width)


def test_carets_stand_under_the_words() -> None:
    (line,) = cut("a\ntorchrun --nproc 2\n", "--nproc")
    assert (line.number, line.text, line.carets) == (2, "torchrun --nproc 2", "         ^^^^^^^")


def test_wide_characters_take_two_cells() -> None:
    (line,) = cut("echo 多卡 --推理 x", "--推理")
    assert line.carets == " " * len("echo 0000 ") + "^" * 6


def test_a_tab_is_expanded_in_front_of_and_inside_the_marked_words() -> None:
    (line,) = cut("\ta\tb", "a\tb")
    assert (line.text, line.carets) == ("    a    b", "    ^^^^^^")


def test_later_lines_are_marked_without_their_indentation() -> None:
    first, second = cut("torchrun \\\n    a.py\n", "torchrun \\\n    a.py")
    assert (first.carets, second.carets) == ("^" * 10, "    ^^^^")


def test_a_long_span_is_abridged() -> None:
    text = "\n".join(f"line {n}" for n in range(20))
    lines = cut(text, text)
    assert len(lines) == MOST_LINES + 1
    assert [line.number for line in lines] == [1, 2, 3, None, 20]
    assert "16 more lines" in lines[3].text


def test_a_long_line_is_cut_around_the_marked_words() -> None:
    (line,) = cut("a " * 200 + "--bad" + " b" * 200, "--bad", 40)
    assert cell_len(line.text) <= 40
    assert line.text[line.caret_start : line.caret_start + line.caret_width] == "--bad"
    assert line.text.startswith("…")
    assert line.text.endswith("…")


def test_an_empty_span_gets_one_caret_even_at_the_end() -> None:
    source = Source("x", "ab", "shell")
    (line,) = excerpt(Location(source, Span(2, 2)))
    assert line.carets == "  ^"


def test_a_carriage_return_is_shown_only_where_it_is_meant() -> None:
    source = Source("x", "ab \\\r\ncd\r\n", "shell")
    (line,) = excerpt(Location(source, Span(0, 2)))
    assert line.text == "ab \\"
    (line,) = excerpt(Location(source, Span(3, 5)))
    assert line.text == "ab \\␍"


@given(
    st.text(st.sampled_from("ab \t\n\r多\x1b\u0301😀"), max_size=120),
    st.integers(0, 120),
    st.integers(0, 120),
    st.integers(1, 60),
)
def test_every_line_fits_and_its_carets_too(text: str, one: int, other: int, width: int) -> None:
    start, end = sorted((min(one, len(text)), min(other, len(text))))
    for line in excerpt(Location(Source("x", text, "shell"), Span(start, end)), width):
        assert cell_len(line.text) <= max(width, 20)
        assert line.caret_start + line.caret_width <= max(width, 20) + 1
        assert "\x1b" not in line.text
        assert "\n" not in line.text
