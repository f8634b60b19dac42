"""Commands in notebooks: which cells and lines hold them, what reaches them, and the way back through JSON."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.finding import Finding
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.source import Location, Source
from mgpu_doctor.read.notebook import excerpts, read, require_whole
from mgpu_doctor.registry import load_checks


def _notebook(*cells: str | tuple[str, str], **more: Any) -> str:
    """A notebook of code cells, or of ``(kind, text)``."""
    found = []
    for cell in cells:
        kind, text = ("code", cell) if isinstance(cell, str) else cell
        body: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
        if kind == "code":
            body |= {"execution_count": None, "outputs": []}
        found.append(body)
    data = {"cells": found, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(data | more, indent=1)


def _texts(text: str) -> list[str]:
    return [excerpt.text.strip() for excerpt in excerpts(Source("a.ipynb", text, "notebook"))]


def _lint(text: str, name: str = "a.ipynb", kind: str = "notebook") -> Report:
    return diagnose(Request(mode="lint", text=text, text_name=name, text_kind=kind))


def _launched(*cells: str | tuple[str, str]) -> list[Command]:
    return [launch.command for launch in _lint(_notebook(*cells)).case.launches]


def _value(command: Command, name: str) -> str | None:
    variable = command.variable(name)
    return None if variable is None else variable.text


def _applied(text: str, finding: Finding) -> str:
    assert finding.fix is not None
    assert finding.fix.edits
    for edit in sorted(finding.fix.edits, key=lambda edit: edit.span, reverse=True):
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    return text


# ---------------------------------------------------------------- which texts


@pytest.mark.parametrize(
    ("cell", "command"),
    [
        ("!torchrun a.py", "torchrun a.py"),
        ("!!torchrun a.py", "torchrun a.py"),
        ("  ! torchrun a.py", "torchrun a.py"),
        ("out = !torchrun a.py", "torchrun a.py"),
        ("%sx torchrun a.py", "torchrun a.py"),
        ("!torchrun \\\n  a.py\nx = 1", "torchrun \\\n  a.py"),
        ("if go:\n    !torchrun a.py\nelse:\n    pass", "torchrun a.py"),
        ("%%bash\ntorchrun a.py", "torchrun a.py"),
        ("\n%%bash --bg\ntorchrun a.py", "torchrun a.py"),
        ("%%sh\ntorchrun a.py", "torchrun a.py"),
        ("%%script bash\ntorchrun a.py", "torchrun a.py"),
        ("%%script --no-raise-error /bin/bash -e\ntorchrun a.py", "torchrun a.py"),
        ("%%time\n!torchrun a.py", "torchrun a.py"),
        ("%%capture out\n!torchrun a.py", "torchrun a.py"),
        ("%%writefile run.sh\ntorchrun a.py", "torchrun a.py"),
        ("%sh\ntorchrun a.py", "torchrun a.py"),
        ("A=1 torchrun --nproc_per_node 2 \\\n a.py", "A=1 torchrun --nproc_per_node 2 \\\n a.py"),
    ],
)
def test_shell_text(cell: str, command: str) -> None:
    assert _texts(_notebook(cell)) == [command]


@pytest.mark.parametrize(
    "cell",
    [
        "x != torchrun",
        "print('''\n!torchrun a.py\n''')",
        "# !torchrun a.py",
        "%%script false\ntorchrun a.py",
        "%%html\ntorchrun a.py",
        "%%writefile a.py\n!torchrun a.py",
        "import torch\ntorchrun = 1",
        "deepspeed = 2",
        "x = 1\n%env A=torchrun",
    ],
)
def test_no_shell_text(cell: str) -> None:
    assert _texts(_notebook(cell)) == []


def test_cells_of_other_kinds() -> None:
    document = ("markdown", "Run it:\n```bash\ntorchrun a.py\n```\nor `torchrun`.")
    assert _texts(_notebook(document, ("raw", "!torchrun b.py"))) == ["torchrun a.py"]


def test_a_cell_in_another_language() -> None:
    cell = {"cell_type": "code", "metadata": {"vscode": {"languageId": "shellscript"}}, "source": "torchrun a.py"}
    assert _texts(_notebook(cells=[cell])) == ["torchrun a.py"]


def test_a_notebook_of_shell() -> None:
    assert _texts(_notebook("cd a\ntorchrun a.py", metadata={"kernelspec": {"name": "bash"}})) == [
        "cd a\ntorchrun a.py"
    ]


def test_the_third_format() -> None:
    cells = [
        {"cell_type": "code", "input": ["!torchrun a.py\n", "x = 1"], "language": "python", "outputs": []},
        {"cell_type": "markdown", "source": "```bash\ntorchrun b.py\n```"},
    ]
    assert _texts(json.dumps({"worksheets": [{"cells": cells}], "nbformat": 3})) == ["torchrun a.py", "torchrun b.py"]


def test_source_as_one_string() -> None:
    assert _texts(_notebook(cells=[{"cell_type": "code", "source": "x = 1\n!torchrun a.py"}])) == ["torchrun a.py"]


def test_calls_that_start_processes() -> None:
    found = _launched("import subprocess\n%matplotlib inline\nsubprocess.run(['torchrun', 'a.py'])\n!ls\n")
    assert [word.value for command in found for word in command.words] == ["torchrun", "a.py"]
    assert [str(command.locate(command.span)) for command in found] == ["a.ipynb:9:23"]


def test_options_below_a_line_that_does_not_go_on() -> None:
    assert _texts(_notebook("!torchrun a.py\n  --lr 1\nx = 1")) == ["torchrun a.py\n  --lr 1"]


# ---------------------------------------------------------------- what reaches them


def test_magics_last() -> None:
    (command,) = _launched("%env CUDA_VISIBLE_DEVICES=0\n%set_env B two words", "%cd work\n%cd sub", "!torchrun a.py")
    assert _value(command, "CUDA_VISIBLE_DEVICES") == "0"
    assert _value(command, "B") == "two words"
    assert command.directory == "work/sub"


def test_environ_and_chdir_last() -> None:
    (command,) = _launched("import os\nos.environ['A'] = \"1\"  # one\nos.chdir('work')", "!torchrun a.py")
    assert (_value(command, "A"), command.directory) == ("1", "work")


def test_what_only_python_knows_is_unknown() -> None:
    (command,) = _launched(
        "%env A={n}\n%env B=$n\nos.environ['C'] = str(n)\nif x:\n    os.environ['D'] = '1'\n%cd {where}",
        "!torchrun a.py",
    )
    for name in "ABCD":
        variable = command.variable(name)
        assert variable is not None
        assert variable.text is None
    assert isinstance(command.directory, Unknown)


def test_lines_with_an_exclamation_mark_are_apart() -> None:
    one, two = _launched("!cd work && export A=1 && torchrun a.py", "!torchrun b.py")
    assert (one.directory, _value(one, "A")) == ("work", "1")
    assert (two.directory, _value(two, "A")) == (None, None)


def test_names_that_python_fills_in() -> None:
    (command,) = _launched("!torchrun --nproc_per_node {n} --master_port=$port a.py --x {{y}} $$HOME {d['k']}")
    shown = [(word.written, word.value is None) for word in command.words]
    assert shown[2] == ("{n}", True)
    assert shown[3] == ("--master_port=$port", True)
    assert shown[6] == ("{y}", False)
    assert shown[8] == ("{d['k']}", True)


# ---------------------------------------------------------------- places and fixes


def test_places_are_those_of_the_file() -> None:
    text = _notebook("x = 1", '!A="é\\t" torchrun \\\n  --nproc_per_node 2 \\\n  --master_port 70000 a.py')
    (finding,) = _lint(text).findings
    assert finding.location is not None
    assert finding.code == "MGD303"
    assert finding.location.source.text == text
    line = text.split("\n")[finding.location.source.position(finding.location.span.start).line - 1]
    assert line == '    "  --master_port 70000 a.py"'


def test_a_fix_is_written_as_json() -> None:
    text = _notebook('%env NCCL_SOCKET_IFNAME="eth0"\n!torchrun --nproc_per_node 2 a.py\n')
    (finding,) = _lint(text).findings
    fixed = json.loads(_applied(text, finding))
    assert "".join(fixed["cells"][0]["source"]).startswith("%env NCCL_SOCKET_IFNAME=eth0\n!torchrun")


def test_a_fix_over_two_lines() -> None:
    text = _notebook("!torchrun --nproc_per_node 1 \\ \n  --master_port 29501 a.py\nx = 1\n")
    (finding,) = _lint(text).findings
    assert finding.code == "MGD802"
    fixed = _applied(text, finding)
    assert "".join(json.loads(fixed)["cells"][0]["source"]).startswith(
        "!torchrun --nproc_per_node 1 \\\n  --master_port"
    )
    assert _lint(fixed).findings == ()


def test_an_insertion_with_quotation_marks() -> None:
    cell = "!sudo torchrun --nproc_per_node 2 a.py"
    report = _lint(_notebook("%env HF_HUB_OFFLINE=1", cell))
    for finding in report.findings:
        if finding.fix is not None and finding.fix.edits:
            json.loads(_applied(_notebook("%env HF_HUB_OFFLINE=1", cell), finding))


def test_a_comment_accepts_a_finding() -> None:
    text = _notebook("# mgpu-doctor: ignore[MGD303] the port is a joke\n!torchrun --master_port 70000 a.py\nx = 1")
    report = _lint(text)
    assert report.findings == ()
    assert [one.reason for one in report.suppressed] == ["the port is a joke"]


def test_a_comment_behind_the_command() -> None:
    report = _lint(_notebook("!torchrun --master_port 70000 a.py # mgpu-doctor: ignore[MGD303] so be it"))
    assert [one.reason for one in report.suppressed] == ["so be it"]


@given(st.lists(st.text(alphabet='ab\\"\n\té😀{}$', max_size=30), min_size=1, max_size=4), st.booleans())
@settings(max_examples=150)
def test_every_character_knows_its_place(cells: list[str], ascii_only: bool) -> None:
    sources = [cell + "\n!torchrun a.py" for cell in cells]
    text = json.dumps({"cells": [{"cell_type": "code", "source": one} for one in sources]}, ensure_ascii=ascii_only)
    notebook = read(Source("a.ipynb", text, "notebook"))
    assert notebook is not None
    assert notebook.code.text == "".join(one + "\n\n" for one in sources)
    within = notebook.code.within
    assert within is not None
    for cell in notebook.cells:
        for offset in range(cell.start, cell.end):
            place = within.locate(offset, offset).start
            after = within.locate(offset + 1, offset + 1).start
            assert json.loads(f'"{text[place:after]}"') == notebook.code.text[offset]


# ---------------------------------------------------------------- damage and size


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"cells": [{"source": "!torchrun a.py" "x"}]}', "1:40"),
        ('{"cells": [\n{"source": "!torchrun a.py}]}', "2:12"),
        ('{"cells": [{"source": ["!torchrun a.py",]}]}', "1:41"),
        ('{"cells": [{"source": "!torchrun \\x a.py"}]}', "1:23"),
        ('{"cells": [\n<<<<<<< HEAD\n"!torchrun a.py"]}', "2:1"),
        ('{"cells": []} torchrun', "1:15"),
        ("torchrun", "1:1"),
    ],
)
def test_damage_names_its_place(text: str, place: str) -> None:
    with pytest.raises(InputError, match=f"^a.ipynb:{place}: not a whole notebook: "):
        require_whole(Source("a.ipynb", text, "notebook"))
    assert _texts(text) == []


def test_damage_without_a_launch_is_nobodys_business() -> None:
    require_whole(Source("a.ipynb", '{"cells": [', "notebook"))


@given(st.text(alphabet='{}[]",:\\ \ntorchun!', max_size=60))
@settings(max_examples=300)
def test_any_text_is_survived(text: str) -> None:
    _texts('{"cells": [{"cell_type": "code", "source": ["!torchrun' + text)
    _texts(text + "torchrun")


def test_large_outputs_are_passed_over() -> None:
    cell: dict[str, Any] = {"cell_type": "code", "source": "!torchrun a.py", "metadata": {}}
    cell["outputs"] = [{"data": {"image/png": "iVBORw0KGgo\n" * 600_000}}, {"data": [[0.25, 1.5]] * 50_000}]
    text = json.dumps({"cells": [cell] * 2, "metadata": {}})
    assert len(text) > 16_000_000
    start = time.process_time()
    found = _texts(text)
    assert found == ["torchrun a.py", "torchrun a.py"]
    assert time.process_time() - start < 6


def test_a_line_of_a_text_inside_is_found_by_the_files_number() -> None:
    notebook = read(Source("a.ipynb", _notebook("x = 1\n!torchrun a.py", "y = 2\n!torchrun b.py"), "notebook"))
    assert notebook is not None
    code = notebook.code
    at = code.text.index("torchrun b")
    line = code.position(at).line
    assert code.slice(code.line_span(line)) == "!torchrun b.py"
    place = Location(code, code.line_span(line)).in_file
    assert place.source.slice(place.span) == "!torchrun b.py"


def test_the_rules_examples_are_judged_alike_in_a_notebook() -> None:
    registry = load_checks()
    fixed = 0
    for check in registry.checks[::5]:
        for command in [example.command for example in check.rule.bad if example.command]:
            shell = diagnose(Request(mode="lint", text=command, text_name="a.sh", text_kind="shell"), registry)
            text = _notebook("%%bash\n" + command)
            notebook = _lint(text)
            assert {one.code for one in notebook.findings} == {one.code for one in shell.findings}, command
            for finding in notebook.findings:
                if finding.fix is not None and finding.fix.edits:
                    json.loads(_applied(text, finding))
                    fixed += 1
    assert fixed > 10
