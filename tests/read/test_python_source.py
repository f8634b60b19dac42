"""Launch commands in Python files: calls, commands kept in strings and lists, documentation."""

from __future__ import annotations

import ast
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.finding import Finding
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.source import Source, Span
from mgpu_doctor.read.python_literals import decoded
from mgpu_doctor.read.python_source import excerpts


def _lint(text: str) -> Report:
    return diagnose(Request(mode="lint", text=text, text_name="a.py", text_kind="python"))


def _launched(text: str) -> list[Command]:
    return [launch.command for launch in _lint(textwrap.dedent(text)).case.launches]


def _words(text: str) -> list[str]:
    """Each launch as it is written, words apart by blanks."""
    return [" ".join(word.written for word in command.words) for command in _launched(text)]


def _applied(text: str, finding: Finding) -> str:
    assert finding.fix is not None
    assert finding.fix.edits
    for edit in sorted(finding.fix.edits, key=lambda edit: edit.span, reverse=True):
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    return text


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    "call",
    [
        'subprocess.run(["torchrun", "a.py"])',
        'subprocess.call(("torchrun", "a.py"))',
        'subprocess.Popen(args=["torchrun", "a.py"])',
        'subprocess.check_call("torchrun a.py", shell=True)',
        'subprocess.check_output("torchrun" " a.py", shell=True)',
        'os.system("torchrun a.py")',
        'os.system("""\n   torchrun \\\n a.py""")',
        'os.popen(r"torchrun a.py")',
        'os.system("torchrun\\x20a.py")',
        'os.execvp("torchrun", ["torchrun", "a.py"])',
        'os.execlp("torchrun", "torchrun", "a.py")',
        'os.spawnvp(os.P_WAIT, "torchrun", ["torchrun", "a.py"])',
        'subprocess.run(shlex.split("torchrun a.py"))',
        'subprocess.run("torchrun a.py".split())',
        'subprocess.run(["torchrun"] + ["a.py"])',
        'subprocess.run(["torchrun", *["a.py"]])',
        'os.system("torchrun " + "a.py")',
        'os.system(" ".join(["torchrun", "a.py"]))',
        'os.system("%s a.py" % "torchrun")',
        'os.system("torchrun {}".format("a.py"))',
        'os.system("torchrun {name}".format(name="a.py"))',
        'NAME = "a.py"\nsubprocess.run(["torchrun", NAME])',
        'def go():\n    command = ["torchrun", "a.py"]\n    subprocess.run(command)',
        'from subprocess import run as go\ngo(["torchrun", "a.py"])',
        'import subprocess as sp\nsp.run(["torchrun", "a.py"])',
        "import asyncio\nasync def f():\n    await asyncio.create_subprocess_exec('torchrun', 'a.py')",
        'helper(["torchrun", "a.py"])',
        'self.command = "torchrun a.py"',
    ],
)
def test_ways_to_start_a_process(call: str) -> None:
    assert _words(call) == ["torchrun a.py"]


def test_the_interpreter_that_runs() -> None:
    text = """
        import subprocess, sys
        python = sys.executable
        subprocess.run([python, "-m", "torch.distributed.run", "--nproc_per_node", str(2), "a.py"])
    """
    assert _words(text) == ["python -m torch.distributed.run --nproc_per_node 2 a.py"]


def test_what_is_not_known_stands_as_it_is_written() -> None:
    text = """
        def go(n, more, out):
            subprocess.run(["torchrun", f"--nproc_per_node={n}", "a.py", "--out", out / "x", *more])
    """
    (command,) = _launched(text)
    assert [word.written for word in command.words] == [
        "torchrun",
        "--nproc_per_node={n}",
        "a.py",
        "--out",
        '{out / "x"}',
        "{*more}",
    ]
    assert [word.value is None for word in command.words] == [False, True, False, False, True, True]
    assert [word.splits for word in command.words] == [False] * 5 + [True]


def test_names_with_several_values_are_not_known() -> None:
    text = """
        n = 2
        if big:
            n = 4
        os.system("torchrun --nproc_per_node %d a.py" % n)
    """
    assert _words(text) == ["torchrun --nproc_per_node {n} a.py"]


def test_a_list_that_grows() -> None:
    text = """
        command = ["torchrun", "a.py"]
        command.append("--x")
        subprocess.run(command)
    """
    assert _words(text) == ["torchrun a.py {*command}"]


def test_a_function_knows_its_own_names() -> None:
    text = """
        name = "a.py"
        def go(name):
            os.system("torchrun {}".format(name))
    """
    assert _words(text) == ["torchrun {name}"]


def test_words_with_blanks_and_quotation_marks() -> None:
    (command,) = _launched("""subprocess.run(["torchrun", "a.py", "--note", "it's $5 \\"now\\"", f"'{x}'"])""")
    assert [word.value for word in command.words[3:]] == ['it\'s $5 "now"', None]
    assert command.words[4].written == "'{x}'"


def test_environment_and_directory() -> None:
    text = """
        import os, subprocess
        os.environ["A"] = "1"
        os.environ["B"] = compute()
        if x:
            os.environ["C"] = "3"
        subprocess.run(["torchrun", "a.py"], env={**os.environ, "D": "4"}, cwd="work")
        os.environ["E"] = "5"
        subprocess.run(["torchrun", "b.py"], env=dict(os.environ, F="6"), cwd=where)
    """
    one, two = _launched(text)
    assert [(variable.name, variable.text) for variable in one.environment] == [("A", "1"), ("B", None), ("D", "4")]
    assert [variable.name for variable in two.environment] == ["A", "B", "E", "F"]
    assert one.directory == "work"
    assert isinstance(two.directory, Unknown)


@pytest.mark.parametrize(
    "text",
    [
        'print("torchrun a.py --lr 1")',
        'raise ValueError("torchrun a.py --lr 1")',
        'if "torchrun a.py" in line:\n    pass',
        'logger.info(f"torchrun a.py {x}")',
        'x = "torchrun is what starts all processes of a.py"',
        'x = "accelerate launch"',
        'x = ["deepspeed", "accelerate", "torchrun"]',
        'x = {"torchrun": "a.py"}',
        'subprocess.run(["pip", "install", "deepspeed"])',
        'subprocess.run([sys.executable, "a.py"])',
        'os.system("which torchrun")',
        'compare("deepspeed", ">", "0.12.6")',
        'commands = ["llamafactory-cli train "]',
        "import torchrun",
        'print "torchrun a.py"',
        'os.system("torchrun a.py"',
        "",
    ],
)
def test_what_is_no_launch(text: str) -> None:
    assert _words(text + "\n") == []


def test_each_command_once() -> None:
    text = """
        launch = ["torchrun", "--nproc_per_node", "2"]
        command = launch + ["a.py"]
        subprocess.run(command)
        print(" ".join(command))
    """
    assert _words(text) == ["torchrun --nproc_per_node 2 a.py"]


# ---------------------------------------------------------------- documentation


@pytest.mark.parametrize(
    "document",
    [
        "Usage:\n    torchrun --nproc_per_node 2 a.py",
        "Usage: torchrun --nproc_per_node 2 a.py",
        "    $ torchrun --nproc_per_node 2 a.py",
        "# two GPUs\ntorchrun --nproc_per_node 2 \\\n    a.py",
        "```bash\ntorchrun --nproc_per_node 2 a.py\n```",
        "```\n$ torchrun --nproc_per_node 2 a.py\nhello\n```",
    ],
)
def test_docstrings(document: str) -> None:
    assert _words(f'r"""{document}\n"""\n') == ["torchrun --nproc_per_node 2 a.py"]
    indented = textwrap.indent(document, "    ").lstrip()
    assert _words(f'def f():\n    r"""{indented}\n    """\n') == ["torchrun --nproc_per_node 2 a.py"]


def test_a_docstring_that_is_not_raw() -> None:
    assert _words('"""\ntorchrun \\\n  a.py\n"""\n') == ["torchrun a.py"]
    assert _words('"""\ntorchrun \\\\\n  a.py\n"""\n') == ["torchrun a.py"]


@pytest.mark.parametrize(
    "document",
    [
        "torchrun a.py is what you want.",
        "Run `torchrun a.py` to see.",
        "torchrun: starts all processes",
        "deepspeed stage 3 of the a.py",
        "torchrun always sets ``LOCAL_RANK``",
        "Args:\n    name: x\n\n        swift path and more",
        "python a.py --input x",
        "```yaml\ntorchrun: a.py\n```",
    ],
)
def test_docstrings_without_a_launch(document: str) -> None:
    assert _words(f'r"""{document}\n"""\nX = "torchrun "\n') == []


def test_comments() -> None:
    text = """
        # Usage: deepspeed a.py --deepspeed ds.json
        x = 1  # torchrun c.py
        # A=1 python -m torch.distributed.launch --nproc_per_node=2 \\
        #     b.py
        #
        # CUDA_VISIBLE_DEVICES=0 python d.py --x
        # this makes deepspeed slow
        y = '''
        # torchrun e.py
        '''
    """
    assert _words(text) == [
        "deepspeed a.py --deepspeed ds.json",
        "python -m torch.distributed.launch --nproc_per_node=2 b.py",
        "python d.py --x",
    ]


def test_the_help_of_an_option() -> None:
    text = 'p = argparse.ArgumentParser(epilog="""Examples:\n  torchrun --nproc_per_node 2 a.py --x\n""")\n'
    assert _words(text) == ["torchrun --nproc_per_node 2 a.py --x"]


# ---------------------------------------------------------------- places and fixes


def test_places_are_those_of_the_file() -> None:
    text = 'é = 1\nsubprocess.run(["torchrun", "é", "--master_port", "70000", "a.py"])\n'
    text = text.replace('"é", ', '"--nproc_per_node", "2", ')
    (finding,) = _lint(text).findings
    assert finding.location is not None
    place = finding.location
    assert str(place) == "a.py:2:55"
    assert place.source.slice(place.span) == '--master_port", "70000'


def test_a_fix_in_a_list() -> None:
    text = 'subprocess.run(["torchrun", "--master_port", "70000", "a.py"])\n'
    (finding,) = _lint(text).findings
    assert _applied(text, finding) == 'subprocess.run(["torchrun", "--master_port", "29501", "a.py"])\n'


def test_a_fix_that_a_list_cannot_hold_is_not_offered() -> None:
    report = _lint('subprocess.run(["sudo", "torchrun", "a.py"], env={"CUDA_VISIBLE_DEVICES": "0", "A": "1"})\n')
    (finding,) = [one for one in report.findings if one.slug == "sudo-resets-environment"]
    assert finding.fix is not None
    assert finding.fix.edits == ()


def test_a_fix_in_a_string_is_escaped() -> None:
    text = "os.system('torchrun --nproc_per_nodes=2 a.py --note \\'x\\'')\n"
    (finding,) = _lint(text).findings
    assert _applied(text, finding) == "os.system('torchrun --nproc_per_node=2 a.py --note \\'x\\'')\n"


def test_a_fix_in_a_docstring_and_a_comment() -> None:
    for text in ('"""\n    torchrun --master_port 70000 a.py\n"""\n', "# torchrun --master_port 70000 a.py\n"):
        (finding,) = _lint(text).findings
        assert _applied(text, finding) == text.replace("70000", "29501")


def test_a_comment_accepts_a_finding() -> None:
    text = 'import os\n# mgpu-doctor: ignore[port-invalid] a joke\nos.system("torchrun --master_port 70000 a.py")\n'
    report = _lint(text)
    assert report.findings == ()
    assert [one.reason for one in report.suppressed] == ["a joke"]


@given(st.text(alphabet="ab\\nx41N{}'\"\n\té😀$0u", max_size=25), st.sampled_from(["", "r", "b", "u", "R"]))
@settings(max_examples=400)
def test_literals_say_what_python_says(body: str, prefix: str) -> None:
    for quote in ('"', "'", '"""', "'''"):
        text = f"{prefix}{quote}{body}{quote}"
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            continue
        except SyntaxWarning:
            continue
        if isinstance(value, str) and "\\N" not in body and "'" not in body and '"' not in body:
            passage = decoded(text, Span(0, len(text)))
            assert passage.text == value
            assert len(passage.places) == len(value)
            assert all(
                text[place] == character or "\\" in text for place, character in zip(passage.places, value, strict=True)
            )


@given(st.text(alphabet="torchun a.py'\"[]({}),=+%\n\\#f", max_size=50))
@settings(max_examples=300)
def test_any_text_is_survived(text: str) -> None:
    excerpts(Source("a.py", "import subprocess\nsubprocess.run('torchrun a.py')\n" + text, "python"))


def test_a_file_that_nests_too_deeply_is_survived() -> None:
    deep = "(" * 90 + "1" + ")" * 90
    assert _words(f"os.system('torchrun a.py')\nx = {deep}\n") == ["torchrun a.py"]
    long = " + ".join(["x"] * 5000)
    assert isinstance(excerpts(Source("a.py", f"y = 'torchrun a.py'\nz = {long}\n", "python")), tuple)
