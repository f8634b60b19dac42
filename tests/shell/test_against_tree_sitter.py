"""The words of simple commands, compared with an independent grammar of bash (tree-sitter-bash).

The grammar knows nothing of expansion, so texts without any are compared: both must
see the same commands, cut into the same words at the same places.
"""

from __future__ import annotations

import tree_sitter
import tree_sitter_bash
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.shell import parse_shell

_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))
_WORD_TYPES = {"word", "string", "raw_string", "concatenation", "number", "command_name"}

KEYWORDS = frozenset(
    {"if", "then", "fi", "for", "do", "done", "in", "case", "esac", "while", "until", "else", "elif", "time", "select"}
)
PLAIN = st.from_regex(r"[A-Za-z0-9_./,:@%+-]{1,8}", fullmatch=True).filter(lambda text: text not in KEYWORDS)
QUOTED = st.one_of(
    st.from_regex(r"'[A-Za-z0-9 =;&|#$]{0,6}'", fullmatch=True),
    st.from_regex(r'"[A-Za-z0-9 =;&|#]{1,6}"', fullmatch=True),
)
OPTION = st.builds(lambda name, value: f"--{name}={value}", st.from_regex(r"[a-z_]{2,8}", fullmatch=True), PLAIN)
BREAK = st.sampled_from([" ", "  ", " \\\n  "])
PROGRAM = st.sampled_from(["torchrun", "accelerate", "python", "deepspeed", "./run", "llamafactory-cli"])
COMMAND = st.builds(
    lambda program, rest: program + "".join(gap + word for gap, word in rest),
    PROGRAM,
    st.lists(st.tuples(BREAK, st.one_of(PLAIN, OPTION, QUOTED)), max_size=6),
)
SCRIPT = st.builds(
    lambda first, rest: first + "".join(joint + command for joint, command in rest),
    COMMAND,
    st.lists(
        st.tuples(st.sampled_from(["\n", " && ", " || ", "; ", " | ", " &\n", "  # a comment\n"]), COMMAND), max_size=4
    ),
)


def _theirs(text: str) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = []
    todo = [_PARSER.parse(text.encode()).root_node]
    while todo:
        node = todo.pop()
        if node.type == "command":
            words = [child for child in node.children if child.type in _WORD_TYPES]
            found.append([(child.start_byte, child.end_byte) for child in words])
        else:
            todo.extend(reversed(node.children))
    return found


@settings(max_examples=400, deadline=None)
@given(SCRIPT)
def test_the_same_words_at_the_same_places(text: str) -> None:
    script = parse_shell(Excerpt.whole(Source("<command>", text, "command")))
    ours = [[tuple(word.span) for word in command.words] for command in script.commands]
    assert ours == _theirs(text)
