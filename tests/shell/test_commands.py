"""Commands with the environment, wrappers and places that a shell gives them."""

from __future__ import annotations

import pytest

from mgpu_doctor.model.command import Command, Script
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.shell import join_argv, mentions_launcher, parse_all, parse_argv, parse_shell


def _script(text: str) -> Script:
    return parse_shell(Excerpt.whole(Source("run.sh", text, "shell")))


def _last(text: str) -> Command:
    return _script(text).commands[-1]


def _values(command: Command) -> list[str | None]:
    return [word.value for word in command.words]


def _environment(command: Command) -> dict[str, str | None]:
    return {variable.name: variable.text for variable in command.environment}


@pytest.mark.parametrize(
    ("text", "words", "wrappers"),
    [
        ("nohup torchrun a.py &", ["torchrun", "a.py"], ["nohup"]),
        ("time -p python a.py", ["python", "a.py"], ["time"]),
        ("timeout -s KILL -k 5 10m python a.py", ["python", "a.py"], ["timeout"]),
        ("nice -n 10 ionice -c 2 python a.py", ["python", "a.py"], ["nice", "ionice"]),
        ("numactl -N 0 -m 0 python a.py", ["python", "a.py"], ["numactl"]),
        ("taskset -c 0-3 python a.py", ["python", "a.py"], ["taskset"]),
        ("stdbuf -oL python a.py", ["python", "a.py"], ["stdbuf"]),
        ("env -u A B=1 python a.py", ["python", "a.py"], ["env"]),
        ("exec setsid python a.py", ["python", "a.py"], ["exec", "setsid"]),
        ("srun -N 2 --ntasks-per-node=1 --gres gpu:4 python a.py", ["python", "a.py"], ["srun"]),
        ("mpirun -np 4 --mca btl tcp,self -x A -H a:2 python a.py", ["python", "a.py"], ["mpirun"]),
        ("docker run --rm -it --gpus all -v /a:/b img:1 python a.py", ["python", "a.py"], ["docker run"]),
        ("docker exec -it box python a.py", ["python", "a.py"], ["docker exec"]),
        ("apptainer exec --nv -B /a img.sif python a.py", ["python", "a.py"], ["apptainer exec"]),
        ("kubectl exec -it pod -- python a.py", ["python", "a.py"], ["kubectl exec"]),
        ("conda run -n e --no-capture-output python a.py", ["python", "a.py"], ["conda run"]),
        ("uv run --extra gpu python a.py", ["python", "a.py"], ["uv run"]),
        ("poetry run accelerate launch a.py", ["accelerate", "launch", "a.py"], ["poetry run"]),
        ("srun bash -c 'torchrun a.py'", ["torchrun", "a.py"], ["srun", "bash -c"]),
        ("bash -lc \"python 'a b.py'\"", ["python", "a b.py"], ["bash -c"]),
        ("ssh -p 22 host 'cd /w && torchrun a.py'", ["torchrun", "a.py"], ["ssh"]),
        ("ray job submit --working-dir . -- python a.py", ["python", "a.py"], ["ray job submit"]),
        ("sbatch --wrap 'python a.py'", ["python", "a.py"], ["sbatch"]),
        ("bash <<EOF\npython a.py\nEOF", ["python", "a.py"], ["bash"]),
    ],
)
def test_wrappers_are_peeled_off(text: str, words: list[str], wrappers: list[str]) -> None:
    command = _last(text)
    assert _values(command) == words
    assert [wrapper.name for wrapper in command.wrappers] == wrappers


def test_launchers_are_no_wrappers() -> None:
    assert _values(_last("accelerate launch --num_processes 2 a.py")) == [
        "accelerate",
        "launch",
        "--num_processes",
        "2",
        "a.py",
    ]


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("A=1 python a.py", {"A": "1"}),
        ("export A=1 B='x y'\nunset A\npython a.py", {"A": None, "B": "x y"}),
        ("A=1\nexport A\npython a.py", {"A": "1"}),
        ("set -a\nA=1\nset +a\nB=2\npython a.py", {"A": "1"}),
        ("declare -x A=1; typeset -x B=2\npython a.py", {"A": "1", "B": "2"}),
        ("export A=1\n(export B=2)\npython a.py", {"A": "1"}),
        ("export A=1\nenv -i B=2 python a.py", {"B": "2"}),
        ("export A=1\nsudo B=2 python a.py", {"B": "2"}),
        ("export A=1\nsudo -E python a.py", {"A": "1"}),
        ("export A=1\nsudo --preserve-env=A python a.py", {"A": "1"}),
        ("export A=1\ndocker run -e A -e B=2 img python a.py", {"A": "1", "B": "2"}),
        ("export A=1\nbash -c 'python a.py'", {"A": "1"}),
        ("A=1\nbash -c 'python a.py'", {}),
        ("export A=1\nsrun --export=NONE python a.py", {}),
        ("A=1 bash -c 'python a.py'", {"A": "1"}),
    ],
)
def test_environment(text: str, environment: dict[str, str | None]) -> None:
    assert _environment(_last(text)) == environment


def test_assignments_that_stay_in_the_shell() -> None:
    command = _last("A=1\npython a.py")
    variable = command.shell_variable("A")
    assert variable is not None
    assert (variable.text, variable.scope) == ("1", "assignment")
    assert command.variable("A") is None


def test_what_sudo_drops_is_kept_apart() -> None:
    variable = _last("export A=1\nsudo python a.py").shell_variable("A")
    assert variable is not None
    assert variable.scope == "export"


def test_an_inherited_variable_stays_exported() -> None:
    source = Source("run.sh", "A=1\npython $A $B ${C:-d}", "shell")
    command = parse_shell(Excerpt.whole(source), environment={"A": "0", "B": "b"}).commands[-1]
    assert _environment(command) == {"A": "1"}
    assert _values(command) == ["python", "1", "b", "d"]


def test_nothing_is_guessed() -> None:
    command = _last('python $A ${B:-1} $(date) $RANDOM *.py "$C"')
    assert _values(command)[1:] == [None] * 6
    assert [word.splits for word in command.words[1:]] == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    "text", ["if x; then A=1; else A=2; fi", "for A in 1 2; do :; done", "x && A=1", "case $x in 1) A=1;; esac"]
)
def test_what_branches_disagree_on_is_unknown(text: str) -> None:
    assert _values(_last(f"A=0\n{text}\npython $A"))[1] is None


def test_branches_that_agree_are_known() -> None:
    assert _values(_last("if x; then A=1; else A=1; fi\npython $A")) == ["python", "1"]


def test_a_branch_that_leaves_does_not_count() -> None:
    assert _values(_last("A=1\nif x; then A=2; exit 1; fi\npython $A")) == ["python", "1"]


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ("cd a && python x", "a"),
        ("cd a\ncd ../b\npython x", "b"),
        ("(cd a)\npython x", None),
        ("cd /a/b; cd ..; python x", "/a"),
    ],
)
def test_directory(text: str, directory: str | None) -> None:
    assert _last(text).directory == directory


@pytest.mark.parametrize(
    "text",
    ["cd $A\npython x", "cd -\npython x", "cd\npython x", "docker run img python x", "if x; then cd a; fi\npython x"],
)
def test_unknown_directory(text: str) -> None:
    assert isinstance(_last(text).directory, Unknown)


def test_flags_of_position() -> None:
    script = _script("for i in 1 2; do python a.py & done\nx && python b.py\npython c.py | tee log\n")
    first, _, second, third, tee = script.commands
    assert (first.repeated, first.background, first.conditional) == (True, True, True)
    assert second.conditional
    assert not second.repeated
    assert (third.pipeline, tee.pipeline) == ((0, 2), (1, 2))


def test_a_command_kept_in_a_variable() -> None:
    text = 'CMD="torchrun \\\n  --lr 1 \\\n  a.py"\n$CMD\n'
    command = _last(text)
    assert _values(command) == ["torchrun", "--lr", "1", "a.py"]
    origins = [word.origin for word in command.words]
    assert [origin.source.slice(origin.span) for origin in origins if origin] == ["torchrun", "--lr", "1", "a.py"]


def test_array_elements_keep_their_place() -> None:
    command = _last("L=(--lr 1)\nL+=('a b')\npython \"${L[@]}\"")
    assert _values(command) == ["python", "--lr", "1", "a b"]
    assert len({word.span for word in command.words[1:]}) == 1
    assert all(word.origin is not None for word in command.words[1:])


def test_words_inside_quoted_text_have_exact_places() -> None:
    text = "  bash -c 'torchrun --lr 1 a.py'"
    command = _last(text)
    assert [text[w.span.start : w.span.end] for w in command.words] == ["torchrun", "--lr", "1", "a.py"]


def test_expansions_by_an_outer_shell_are_marked() -> None:
    outer = _last('srun bash -c "torchrun --node_rank $SLURM_PROCID a.py"')
    inner = _last("srun bash -c 'torchrun --node_rank $SLURM_PROCID a.py'")
    assert [piece.early for piece in outer.words[2].pieces] == [True]
    assert [piece.early for piece in inner.words[2].pieces] == [False]


def test_functions_are_called_with_their_arguments() -> None:
    script = _script("run() { python $1 --lr $2; }\nrun a.py 1\n")
    assert [_values(command) for command in script.commands] == [["python", "a.py", "--lr", "1"]]


def test_functions_that_nobody_calls_are_read_once() -> None:
    (command,) = _script("run() { python $1; }\n").commands
    assert _values(command) == ["python", None]
    assert command.conditional


def test_called_scripts() -> None:
    texts = {
        "run.sh": "export B=2\nsource env.sh\n./more.sh x y\nbash run.sh\n",
        "env.sh": "export A=1\n",
        "./more.sh": "python $1 $2 $A $C\n",
    }

    def follow(path: str, _command: Command) -> Source | None:
        return Source(path, texts[path], "shell", path) if path in texts else None

    scripts = parse_all(Excerpt.whole(Source("<command>", "C=3 bash run.sh", "command")), follow=follow)
    assert [script.source.name for script in scripts] == ["<command>", "env.sh", "./more.sh", "run.sh"]
    command = scripts[2].commands[0]
    assert _values(command) == ["python", "x", "y", "1", "3"]
    assert _environment(command) == {"A": "1", "B": "2", "C": "3"}
    assert command.called_from is not None
    assert command.called_from.name == "./more.sh"


def test_here_documents_are_no_commands() -> None:
    assert [c.name for c in _script("cat <<EOF > a.yaml\npython x\nEOF\npython y\n").commands] == ["cat", "python"]


def test_placeholders_are_words() -> None:
    script = _script("python train.py --model <path to model> --out <dir>/x --n 1\n")
    assert script.problems == ()
    assert [word.shown for word in script.commands[0].words] == [
        "python", "train.py", "--model", "<path to model>", "--out", "<dir>/x", "--n", "1",
    ]  # fmt: skip
    assert script.commands[0].redirects == ()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a \\\n b", ["continuation"]),
        ("a \\ \n b", ["escaped-blank"]),
        ("a \\ # c\n b", ["escaped-blank"]),
        ("a \\  # c\n b", ["escaped-blank", "comment"]),
        ("a \\\n\nb", ["dangling"]),
        ("a \\", ["dangling"]),
        ("a\r\nb", ["carriage-return"]),
        ("a \u2014b '\u2014'", ["typographic"]),
        ("# c", ["comment"]),
        ("a#b '# c' \"# c\"", []),
        ("cat <<EOF\n# c \\\nEOF\n", []),
    ],
)
def test_marks(text: str, kinds: list[str]) -> None:
    assert [mark.kind for mark in _script(text).marks] == kinds


def test_directives() -> None:
    assert [text for text, _ in _script("#!/bin/bash\n#SBATCH -N 2\n# no\n#PBS -l x\npython a\n").directives] == [
        "#SBATCH -N 2",
        "#PBS -l x",
    ]


def test_words_of_an_argument_vector() -> None:
    argv = ("python", "a b.py", "--x", "$HOME", "it's", "")
    source, command = parse_argv(argv)
    assert command is not None
    assert tuple(_values(command)) == argv
    assert source.text == join_argv(argv)


def test_a_quick_look() -> None:
    assert mentions_launcher("x\n  accelerate launch a.py")
    assert not mentions_launcher("echo hello\nls -l")


@pytest.mark.parametrize(
    "run",
    ['torchrun $OPTIONS "$SCRIPT"', 'CMD="torchrun $OPTIONS $SCRIPT"\n$CMD', 'bash -c "torchrun $OPTIONS $SCRIPT"'],
)
def test_a_word_is_written_as_in_the_text_that_holds_it(run: str) -> None:
    text = 'ROOT="${ROOT:-/src}"\nIP=$(hostname -I | head -1)\nSCRIPT="${ROOT}/train.py"\n'
    words = [word.written for word in _last(f'{text}OPTIONS="--master_addr $IP --nnodes ${{N[0]}}"\n{run}').words]
    assert words[:-1] == ["torchrun", "--master_addr", "$IP", "--nnodes", "${N[0]}"]
    assert words[-1] == ("$SCRIPT" if run.startswith("torchrun") else "${ROOT}/train.py")


def test_unset_takes_the_export_away() -> None:
    text = "export A=1\nunset A\nA=2\npython x.py\nexport A\npython y.py"
    script = parse_shell(Excerpt.whole(Source("<command>", text, "command")))
    first, second = (command for command in script.commands if command.name == "python")
    assert first.variable("A") is None
    assert first.shell_variable("A") is not None
    found = second.variable("A")
    assert found is not None
    assert found.text == "2"
