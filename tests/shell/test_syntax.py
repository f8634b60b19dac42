"""Where we say that the shell refuses a text, it does; and nothing makes the parser fail."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bash_scripts import Maker
from mgpu_doctor.model.command import Script
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.shell import parse_shell

EXAMPLES = int(os.environ.get("MGPU_DOCTOR_FUZZ", "0")) or 500


def _read(text: str) -> Script:
    return parse_shell(Excerpt.whole(Source("x.sh", text, "shell")))


def _refused(text: str) -> bool:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run([bash, "-n"], input=text.encode(), capture_output=True, check=False, timeout=60)
    return done.returncode != 0


@pytest.mark.parametrize(
    "text",
    [
        "echo 'a\n",
        'echo "a\n',
        "echo (a)\n",
        "if x; then y\n",
        "for i in 1; do x\n",
        "x |\n",
        "fi\n",
        "x; done\n",
        "}\n",
        "(x\n",
        "x )\n",
        "case a in b) c\n",
        "| x\n",
        "x && && y\n",
        "[[ -z a\n",
        "A=(1 2\n",
        "echo $(x\n",
        "f() {\n x\n",
        "while x; do y\n",
        "if x; y; fi\n",
        "x > \n",
        "echo `x\n",
        "{ x\n",
    ],
)
def test_the_shell_refuses_what_we_say(text: str) -> None:
    assert _refused(text)
    assert _read(text).problems


@pytest.mark.parametrize(
    "text",
    [
        "a=$((1 << 2))\n",
        "[[ $a =~ ^(x|y)$ ]] && b\n",
        "case $1 in (a|b) c;; *) d;; esac\n",
        "f () { x; }\n",
        "function f { x; }\n",
        "for ((i=0; i<3; i++)); do x; done\n",
        "select a in b; do break; done\n",
        "x 2>&1 >&- <<< 'a'\n",
        "cat <<'E' | y\n$(\nE\n",
        "a=(\n 1 # c\n 2\n)\n",
        "echo ${a/(/x} ${b:-)}\n",
        "x <(y) >(z)\n",
        "until x; do y; done\n",
        "! x | y\n",
        "time x\n",
        "if x\nthen y\nelif z\nthen q\nelse r\nfi\n",
        "{ x; } > y\n",
        "echo a\\\nb\n",
        "coproc x\n",
        'echo "$(echo ")")"\n',
        "echo $'it\\'s'\n",
        "x &> y &\n",
        "x |& y\n",
        "declare -A m=([a]=1 [b]=2)\n",
        "((a++))\n",
        "cat <<-E\n\tx\n\tE\n",
        "echo {a,b}{1..3}\n",
        "a[1]=2\n",
        "echo ${!a} ${#a[@]} ${a[@]:1:2} ${a^^}\n",
        "x;\n",
        "\n\n# only\n",
    ],
)
def test_what_the_shell_takes_is_no_problem(text: str) -> None:
    assert not _refused(text)
    assert _read(text).problems == ()


def test_generated_scripts_are_refused_together() -> None:
    for seed in range(150):
        script = Maker(seed, rich=True).script()
        assert bool(_read(script).problems) == _refused(script), script


def _inside(script: Script) -> bool:
    size = len(script.source.text)
    spans = [mark.span for mark in script.marks] + [problem.span for problem in script.problems]
    for command in script.commands:
        spans.append(command.span)
        spans += [word.span for word in command.words]
        spans += [word.origin.span for word in command.words if word.origin is not None]
        spans += [variable.location.span for variable in command.environment if variable.location is not None]
        spans += [redirect.span for redirect in command.redirects]
        spans += [wrapper.span for wrapper in command.wrappers]
    return all(_ordered(span, size) for span in spans)


def _ordered(span: Span, size: int) -> bool:
    return 0 <= span.start <= span.end <= size


_SHELL_TEXT = st.lists(
    st.sampled_from(
        [
            *list("ab1 \n\t\\'\"`$(){}[]<>|&;#=~*?!-:/@%^+,.\r—"),
            "if ",
            "then ",
            "fi\n",
            "for ",
            "do ",
            "done\n",
            "<<E\n",
            "bash -c ",
            "eval ",
            "export ",
        ]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(_SHELL_TEXT)
def test_any_text_can_be_read(text: str) -> None:
    assert _inside(_read(text))


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(st.text(max_size=80))
def test_any_unicode_can_be_read(text: str) -> None:
    assert _inside(_read(text))


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 1 << 30))
def test_damaged_scripts_can_be_read(seed: int, damage: int) -> None:
    text = Maker(seed, rich=True).script()
    chance = random.Random(damage)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        text = (
            text[:at]
            + chance.choice(("", "'", '"', "(", "\\", "$(", "${", "`", "\n", "}", "<<X "))
            + text[at + chance.randint(0, 3) :]
            + " "
        )
    assert _inside(_read(text))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "$(" * 5000,
        "{ " * 5000,
        "if " * 5000,
        '"$(' * 3000,
        "${a:-" * 3000,
        "eval " * 3000,
        "a=(" * 3000,
        "f() { f; f; }; f",
        "{a,b}" * 40,
        "echo {1..99999999}",
        "[[ " * 3000,
        "!" * 5000,
        "((" * 3000,
    ],
)
def test_deep_and_wide_texts_end_soon(text: str) -> None:
    start = time.perf_counter()
    assert _inside(_read(text))
    assert time.perf_counter() - start < 5
