from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_stand_ins import context_of, words_of
from mgpu_doctor.launchers.chain import Peeled
from mgpu_doctor.launchers.python import cut, is_interpreter, names_interpreter, peel
from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.source import Span


def peeled(text: str) -> Peeled | None:
    return peel(words_of(text), "command", context_of(text))


def parts(text: str) -> tuple[str, list[str], list[str]]:
    found = peeled(text)
    assert found is not None
    return found.form, [w.shown for w in found.layer.argument_words], [w.shown for w in found.rest]


@pytest.mark.parametrize(
    ("text", "form", "own", "rest"),
    [
        ("python train.py --lr 1", "script", [], ["train.py", "--lr", "1"]),
        ("python3 -u train.py -m x", "script", ["-u"], ["train.py", "-m", "x"]),
        ("/opt/env/bin/python3.11 -m pkg.mod -x", "module", ["-m"], ["pkg.mod", "-x"]),
        ("python -mpkg.mod a", "module", ["-m"], ["pkg.mod", "a"]),
        ("python -um pkg", "module", ["-um"], ["pkg"]),
        ("python -c pass a", "inline", ["-c"], ["pass", "a"]),
        ("python -X dev -W error -O t.py", "script", ["-X", "dev", "-W", "error", "-O"], ["t.py"]),
        ("python -Xdev t.py", "script", ["-Xdev"], ["t.py"]),
        ("python -Werror::DeprecationWarning t.py", "script", ["-Werror::DeprecationWarning"], ["t.py"]),
        ("python --check-hash-based-pycs always t.py", "script", ["--check-hash-based-pycs", "always"], ["t.py"]),
        ("python -- t.py", "script", ["--"], ["t.py"]),
        ("python - a", "inline", [], ["-", "a"]),
        ("python", "none", [], []),
        ("python --version", "none", ["--version"], []),
        ("python -V t.py", "none", ["-V"], []),
        ("python -m", "none", ["-m"], []),
        ("python $SCRIPT a", "script", [], ["$SCRIPT", "a"]),
        ("python $@SCRIPT -m x", "script", [], ["$@SCRIPT", "-m", "x"]),
        ("python $@OPTS train.py a", "script", ["$@OPTS"], ["train.py", "a"]),
        ("python $@OPTS -m pkg a", "module", ["$@OPTS", "-m"], ["pkg", "a"]),
    ],
)
def test_splits_like_the_interpreter(text: str, form: str, own: list[str], rest: list[str]) -> None:
    assert parts(text) == (form, own, rest)


@pytest.mark.parametrize("text", ["pythonic a", "torchrun a", "python-config", "ipython"])
def test_leaves_other_programs_alone(text: str) -> None:
    assert peeled(text) is None


def test_a_script_named_python_is_no_interpreter() -> None:
    assert peel(words_of("python train.py"), "script", context_of("python train.py")) is None


def test_says_when_the_split_cannot_be_followed() -> None:
    found = peeled("python $@OPTS --lr 1")
    assert found is not None
    assert found.layer.opaque is not None


@pytest.mark.parametrize("name", ["$PYTHON", "${PYTHON_BIN}", "$(which python)", "$MY_PYTHON3", "${PYTHON:-python3}"])
def test_knows_an_interpreter_behind_a_variable(name: str) -> None:
    assert names_interpreter(Word(Span(0, len(name)), (Piece(None, name, "$"),)))


@pytest.mark.parametrize("name", ["$PYTHONPATH", "$SCRIPT", "$LAUNCHER", "$PYTHONIC"])
def test_takes_no_other_variable_for_an_interpreter(name: str) -> None:
    assert not names_interpreter(words_of(name)[0])


@pytest.mark.parametrize(
    "name", ["python", "python3", "python3.12", "python3.13t", "pypy3", "/x/y/python", "python.exe"]
)
def test_interpreter_names(name: str) -> None:
    assert is_interpreter(name)


def test_cut_keeps_exact_spans_of_plain_words() -> None:
    word = words_of("x --a=bc")[1]
    part = cut(word, 4, None)
    assert (part.value, part.span) == ("bc", (6, 8))


SHOW = "import sys, json; print(json.dumps(sys.argv))"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["-u", "-B", "-I", "-O", "-X", "-Xutf8", "-W", "-Wignore", "-s", "-uB", "-bb"]), max_size=3
    ),
    st.lists(st.sampled_from(["-m", "a", "--x=1", "-c", "--"]), max_size=3),
)
def test_agrees_with_the_interpreter_itself(options: list[str], tail: list[str]) -> None:
    full = []
    for option in options:
        full.append(option)
        if option == "-X":
            full.append("dev")
        if option == "-W":
            full.append("ignore")
    with_code = [*full, "-c", SHOW, *tail]
    run = subprocess.run([sys.executable, *with_code], capture_output=True, text=True, check=True)
    received = json.loads(run.stdout)[1:]
    placeholder = [part if part != SHOW else "CODE" for part in with_code]
    form, own, rest = parts(" ".join(["python", *placeholder]))
    assert (form, rest) == ("inline", ["CODE", *received])
    assert own == [*full, "-c"]


def test_a_real_module_run(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text("import sys; print(sys.argv[1:])")
    run = subprocess.run(
        [sys.executable, "-mshow", "-m", "b"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "['-m', 'b']"
    assert parts("python -mshow -m b") == ("module", ["-m"], ["show", "-m", "b"])
