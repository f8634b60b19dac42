"""Random shell scripts, and what real bash makes of them."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

NAMES = ("A", "B", "C", "NPROC", "ARGS", "Z_1")
ARRAYS = ("L", "M")
_WORDS = ("a", "train.py", "--lr", "1e-4", "0,1", "x=y", "a/b.c", "10", "7", "-m", "@", "k:v", "%", "é", "a+b", "^")
_BLANKS = (" ", "  ", "\t", " \\\n ", " \\\n")


class Maker:
    """Makes one script from a seed. ``rich`` adds branches, loops and functions."""

    def __init__(self, seed: int, *, rich: bool = False, literal: bool = False) -> None:
        self.random = random.Random(seed)
        self.rich = rich
        self.literal = literal
        self.shown = 0

    def script(self) -> str:
        start = "" if self.rich else "".join(f"{name}={self.value()}\n" for name in NAMES) + "L=(a 'b c') M=()\n"
        return start + "".join(self.statement(0) for _ in range(self.random.randint(2, 9))) + self.show() + "\n"

    def choice(self, options: Iterable[str]) -> str:
        return self.random.choice(tuple(options))

    def statement(self, depth: int) -> str:
        kinds = ["assign", "assign", "array", "show", "show", "export", "append", "unset", "set", "comment"]
        if self.rich and depth < 2:
            kinds += ["if", "for", "and", "subshell", "function", "case", "group", "eval", "element", "while", "prefix"]
        kind = self.choice(kinds)
        make: Callable[[int], str] = getattr(self, f"{kind}_" if kind in ("if", "for", "and", "set", "while") else kind)
        return make(depth) + self.end()

    def end(self) -> str:
        return self.choice(("\n", "\n", "\n\n", " # note 'x\n", "; ")) if self.random.random() < 0.5 else "\n"

    # ------------------------------------------------------------ statements

    def assign(self, _depth: int = 0) -> str:
        return " ".join(f"{self.choice(NAMES)}={self.value()}" for _ in range(self.random.choice((1, 1, 1, 2))))

    def append(self, _depth: int = 0) -> str:
        if self.random.random() < 0.5:
            return f"{self.choice(NAMES)}+={self.value()}"
        return f"{self.choice(ARRAYS)}+=({self.words(2)})"

    def array(self, _depth: int = 0) -> str:
        return f"{self.choice(ARRAYS)}=({self.words(4)})"

    def element(self, _depth: int = 0) -> str:
        return f"{self.choice(ARRAYS)}[{self.random.randint(0, 3)}]={self.value()}"

    def export(self, _depth: int = 0) -> str:
        return self.choice(
            (
                f"export {self.choice(NAMES)}={self.value()}",
                f"export {self.choice(NAMES)}",
                f"declare -x {self.choice(NAMES)}={self.quoted()}",
            )
        )

    def unset(self, _depth: int = 0) -> str:
        return f"unset {self.choice(NAMES + ARRAYS)}"

    def set_(self, _depth: int = 0) -> str:
        return self.choice((f"set -- {self.words(3)}", "shift", "set -e +e", "set --"))

    def comment(self, _depth: int = 0) -> str:
        return f"# {self.quoted()} \\"

    def show(self, _depth: int = 0) -> str:
        self.shown += 1
        return f"show {self.shown}{self.blank()}{self.words(5)}"

    def prefix(self, _depth: int = 0) -> str:
        self.shown += 1
        return f"{self.choice(NAMES)}={self.value()} show {self.shown} {self.words(2)}"

    def body(self, depth: int) -> str:
        return "".join(self.statement(depth + 1) for _ in range(self.random.randint(1, 3)))

    def test(self) -> str:
        return self.choice(
            ("true", "false", f'[ -z "${self.choice(NAMES)}" ]', f"[[ ${self.choice(NAMES)} == a* ]]", "! true")
        )

    def if_(self, depth: int) -> str:
        text = f"if {self.test()}; then\n{self.body(depth)}"
        if self.random.random() < 0.3:
            text += f"elif {self.test()}; then\n{self.body(depth)}"
        if self.random.random() < 0.5:
            text += f"else\n{self.body(depth)}"
        return text + "fi"

    def for_(self, depth: int) -> str:
        return f"for {self.choice(NAMES)} in {self.words(3)}; do\n{self.body(depth)}done"

    def while_(self, depth: int) -> str:
        return f"n=0; while [ $n -lt 2 ]; do n=$((n+1))\n{self.body(depth)}done"

    def and_(self, depth: int) -> str:  # noqa: ARG002 - all statements are called alike
        return f"{self.test()} {self.choice(('&&', '||'))} {self.choice((self.assign(), self.show()))}"

    def subshell(self, depth: int) -> str:
        return f"( {self.body(depth)})"

    def group(self, depth: int) -> str:
        return "{ " + self.body(depth) + "}"

    def case(self, depth: int) -> str:
        return f"case ${self.choice(NAMES)} in\n  a*|1) {self.body(depth)};;\n  *) {self.body(depth)};;\nesac"

    def function(self, depth: int) -> str:
        name = self.choice(("f", "g"))
        local = f"local {self.choice(NAMES)}={self.value()}\n" if self.random.random() < 0.4 else ""
        return f"{name}{depth}() {{\n{local}{self.body(depth + 1)}}}\n{name}{depth} {self.words(2)}"

    def eval(self, _depth: int = 0) -> str:
        self.shown += 1
        return f"eval show {self.shown} {self.words(2)}"

    # ------------------------------------------------------------ words

    def blank(self) -> str:
        return self.choice(_BLANKS)

    def words(self, most: int) -> str:
        return "".join(self.word() + self.blank() for _ in range(self.random.randint(0, most)))

    def word(self) -> str:
        return "".join(self.part() for _ in range(self.random.choice((1, 1, 1, 2, 3))))

    def value(self) -> str:
        return self.word() if self.random.random() < 0.9 else ""

    def part(self) -> str:
        roll = self.random.random()
        if roll < 0.35:
            return self.choice(_WORDS if self.literal else (*_WORDS, "~x"))
        if roll < 0.55:
            return self.quoted()
        if roll < 0.62:
            return self.choice(
                ("\\ ", "\\$", "\\'", '\\"', "\\\\", "\\a", "$'a\\tb\\'c\\x41'", "$'\\n'", '$"q"', "\\#")
            )
        if roll < 0.70:
            return self.choice(
                ("{a,b}", "{1..3}", "{x,y{1,2}}", "{a}", "a{,b}c", "{01..3}", "{c..a}", "{}", "{a,b", "{'a,b',c}")
            )
        return self.choice(_WORDS) if self.literal else self.expansion()

    def quoted(self) -> str:
        if self.random.random() < 0.5:
            return "'" + self.choice(("", "a b", "$A", "\\", 'x"y', "# no", "a\n b", "{a,b}", "*")) + "'"
        inner = self.choice(("", "a b", "\\$A", "\\\\", "it's", "a\\\nb", "\\x", "# no", "{a,b}", "\n", "*", "\\`"))
        if not self.literal and self.random.random() < 0.6:
            inner += self.expansion() + self.choice(("", " ", "z"))
        return f'"{inner}"'

    def expansion(self) -> str:
        name, array = self.choice(NAMES), self.choice(ARRAYS)
        return self.choice(
            (
                f"${name}", f"${name}", f"${{{name}}}", f"${{{name}:-{self.choice(_WORDS)}}}", f"${{{name}-d e}}",
                f"${{{name}:+{self.choice(_WORDS)}}}", f"${{{name}:='w x'}}", f"${{#{name}}}", f"${{{name}%.*}}",
                f"${{{name}##*/}}", f"${{{name}#a}}", f"${{{name}/a/b}}", f"${{{name}//-/_}}", f"${{{name}:1:2}}",
                f"${{{name}^^}}", f"${{{name}: -1}}", f"${{{array}[@]}}", f"${{{array}[*]}}", f"${{{array}[0]}}",
                f"${{{array}[1]}}", f"${{#{array}[@]}}", f"${{{array}[@]:1:2}}", f"${{{array}[@]:0:1}}", f"${array}",
                "$1", "$2", "$@", "$*", "$#", "${1:-p}", "$((1+2*3))", "$(( (7-2)/2 ))", f"${{{name}:-$B}}",
                f"${{{name}%%{self.choice(('a', 'y', '?'))}}}", "${@:2}", f"${{{name},,}}", f"${{{array}[-1]}}",
            )
        )  # fmt: skip


_RUNNER = """
show() { printf '%s\\0' "$#" "$@"; }
TEXTS=$1 COUNT=$2
for (( NUMBER = 0; NUMBER < COUNT; NUMBER++ )); do
  ( set --; . "$TEXTS/$NUMBER.sh" ) > "$TEXTS/$NUMBER.out" 2> "$TEXTS/$NUMBER.err" < /dev/null
done
true
"""


def run_in_bash(scripts: list[str], directory: Path) -> Iterator[list[tuple[str, ...]]]:
    """For each script the arguments of every ``show`` that bash ran, in order. Skips the test without bash."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    texts = directory / "texts"
    empty = directory / "empty"
    texts.mkdir()
    empty.mkdir()
    for number, script in enumerate(scripts):
        (texts / f"{number}.sh").write_text(script, encoding="utf-8")
    # No PATH: the scripts can run nothing but builtins.
    environment = {"PATH": str(empty), "LC_ALL": "C.UTF-8", "HOME": "/nowhere"}
    subprocess.run(
        [bash, "--norc", "--noprofile", "-c", _RUNNER, "bash", str(texts), str(len(scripts))],
        cwd=empty, env=environment, check=True, timeout=300,
    )  # fmt: skip
    for number in range(len(scripts)):
        yield list(_calls((texts / f"{number}.out").read_bytes().decode("utf-8", "surrogateescape")))


def _calls(output: str) -> Iterator[tuple[str, ...]]:
    fields = output.split("\0")[:-1]
    at = 0
    while at < len(fields):
        count = int(fields[at])
        yield tuple(fields[at + 1 : at + 1 + count])
        at += 1 + count
