"""Commands choose their interpreter as a shell, conda and uv would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from environment_files import executable, make_venv
from mgpu_doctor.collect.activation import Chosen, chosen_interpreter, conda_environment
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.shell import parse_all


def choose(text: str, directory: Path, **variables: str) -> str | Unknown | None:
    return chosen(text, directory, **variables).python


def chosen(text: str, directory: Path, **variables: str) -> Chosen:
    """What a text's commands choose, with ``bin/python`` of ``directory / "path"`` on PATH."""
    inherited = {"PATH": str(directory / "path" / "bin"), "HOME": str(directory), **variables}
    source = Source("run.sh", text, "shell")
    scripts = parse_all(Excerpt.whole(source), environment=inherited, follow=lambda _path, _command: None)
    return chosen_interpreter((command for script in scripts for command in script.commands), inherited, str(directory))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with environments: on PATH, ``a``, ``b``, ``.venv``, and two of conda's."""
    for name in ("path", "a", "b", ".venv"):
        python = make_venv(tmp_path / name)
        executable(python.parent / "torchrun", f"#!{python}\nimport sys\n")
    for name in ("conda", "conda/envs/llama"):
        executable(tmp_path / name / "bin" / "python")
        (tmp_path / name / "conda-meta").mkdir()
    executable(tmp_path / "conda" / "bin" / "conda")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchrun a.py", None),
        ("python a.py", None),
        ("ls; nvidia-smi", None),
        ("a/bin/python a.py", "a"),
        ("TOP/a/bin/python3.11 a.py; true", Unknown),
        ("a/bin/torchrun a.py", "a"),
        ("path/bin/torchrun a.py", None),
        ("gone/bin/torchrun a.py", Unknown),
        ("source a/bin/activate\ntorchrun a.py", "a"),
        (". ./a/bin/activate && torchrun a.py", "a"),
        ("source TOP/a/bin/activate; deactivate; torchrun a.py", None),
        ("source a/bin/activate\nsource b/bin/activate\ntorchrun a.py", "b"),
        ("source a/bin/activate; torchrun a.py; source b/bin/activate; torchrun b.py", Unknown),
        ("source a/bin/activate; python -m pip install x; source b/bin/activate; torchrun b.py", "b"),
        ("python -m venv c; source a/bin/activate; torchrun a.py", "a"),
        ("source path/bin/activate; torchrun a.py; deactivate; torchrun a.py", None),
        ("cd a && source bin/activate && torchrun a.py", "a"),
        ("if true; then source a/bin/activate; fi; torchrun a.py", Unknown),
        ("if true; then source path/bin/activate; fi; torchrun a.py", None),
        ("source $VENV/bin/activate; torchrun a.py", Unknown),
        ("source gone/bin/activate; torchrun a.py", Unknown),
        ("source env.sh; torchrun a.py", None),
        ("export PATH=TOP/a/bin:$PATH; torchrun a.py", "a"),
        ("PATH=TOP/a/bin:$PATH torchrun a.py", "a"),
        ("export PATH=TOP/tools:$PATH; torchrun a.py", None),
        ("export PATH=$CUDA_HOME/bin:$PATH; torchrun a.py", None),
        ("export PATH=$SOMEWHERE/bin:$PATH; torchrun a.py", Unknown),
        ("$PYTHON -m torch.distributed.run a.py", Unknown),
        ("conda activate llama; torchrun a.py", "conda/envs/llama"),
        ("source activate llama; torchrun a.py", "conda/envs/llama"),
        ("conda activate gone; torchrun a.py", Unknown),
        ("conda activate $ENV; torchrun a.py", Unknown),
        ("conda activate llama; conda deactivate; torchrun a.py", None),
        ("conda activate conda/envs/llama; torchrun a.py", "conda/envs/llama"),
        ("conda activate; torchrun a.py", "conda"),
        ("source conda/bin/activate llama; torchrun a.py", "conda/envs/llama"),
        ("conda run -n llama torchrun a.py", "conda/envs/llama"),
        ("conda run --prefix=TOP/conda/envs/llama torchrun a.py", "conda/envs/llama"),
        ("conda run -n gone torchrun a.py", Unknown),
        ("srun conda run --no-capture-output -n llama torchrun a.py", "conda/envs/llama"),
        ("module load anaconda3; torchrun a.py", Unknown),
        ("module load cuda/12.1 gcc/11 nccl; torchrun a.py", None),
        ("ml PyTorch/2.1; torchrun a.py", Unknown),
        ("ml cuda; ml list; module purge; torchrun a.py", None),
        ("module load $MODULE; torchrun a.py", Unknown),
        ("module load anaconda3; source a/bin/activate; torchrun a.py", "a"),
        ("module load anaconda3; a/bin/python a.py", "a"),
        ("poetry run torchrun a.py", Unknown),
        ("docker run --gpus all image torchrun a.py", Unknown),
        ("nohup torchrun a.py &", None),
        ("uv run torchrun a.py", ".venv"),
        ("uv run --with rich torchrun a.py", Unknown),
        ("source $VENV/bin/activate; uv run torchrun a.py", Unknown),
        ("source a/bin/activate; uv run torchrun a.py", "a"),
    ],
)  # fmt: skip
def test_choice(place: Path, text: str, expected: object) -> None:
    conda = {"CONDA_EXE": str(place / "conda" / "bin" / "conda")}
    found = choose(text.replace("TOP", str(place)), place, **conda)
    if expected is Unknown:
        assert isinstance(found, Unknown), found
    else:
        assert found == (None if expected is None else str(place / str(expected) / "bin" / "python"))


def test_the_path_that_commands_get(place: Path) -> None:
    inherited = str(place / "path" / "bin")
    assert chosen("torchrun a.py", place) == Chosen()
    by_path = chosen("a/bin/torchrun a.py", place)
    assert by_path == Chosen(str(place / "a" / "bin" / "python"), inherited)
    for text in ("source a/bin/activate; torchrun a.py", "source a/bin/activate; uv run torchrun a.py"):
        assert chosen(text, place) == Chosen(by_path.python, f"{place}/a/bin:{inherited}")


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("torchrun a.py", False),
        ("export PATH=TOP/tools:$PATH; torchrun a.py", False),
        ("export CUDA_HOME=/usr/local/cuda-12.1; torchrun a.py", True),
        ("export PATH=$CUDA_HOME/bin:$PATH; torchrun a.py", True),
        ("module load cuda/12.1; torchrun a.py", True),
        ("module load gcc; torchrun a.py", False),
    ],
)
def test_a_toolkit_that_the_text_chooses(place: Path, text: str, other: bool) -> None:
    assert (chosen(text, place).toolkit is not None) is other


def test_a_path_that_the_text_sets(place: Path) -> None:
    inherited = str(place / "path" / "bin")
    found = chosen("export PATH=TOP/tools:$PATH; torchrun a.py".replace("TOP", str(place)), place)
    assert found == Chosen(None, f"{place}/tools:{inherited}")
    found = chosen(
        "export PATH=TOP/tools:$PATH; source b/bin/activate; torchrun a.py".replace("TOP", str(place)), place
    )
    assert found == Chosen(str(place / "b" / "bin" / "python"), f"{place}/b/bin:{place}/tools:{inherited}")


def test_environments_of_conda(tmp_path: Path) -> None:
    for name in ("listed/x", "home/.conda/envs/y", "more/z", "root/envs/w"):
        (tmp_path / name / "conda-meta").mkdir(parents=True)
    (tmp_path / "home" / ".conda" / "environments.txt").write_text(f"{tmp_path}/gone/x\n{tmp_path}/listed/x\n")
    executable(tmp_path / "root" / "condabin" / "conda")
    variables = {
        "HOME": str(tmp_path / "home"),
        "CONDA_ENVS_PATH": str(tmp_path / "more"),
        "PATH": str(tmp_path / "root" / "condabin"),
        "CONDA_DEFAULT_ENV": "now",
        "CONDA_PREFIX": "/opt/now",
    }
    for name, path in (("x", "listed/x"), ("y", "home/.conda/envs/y"), ("z", "more/z"), ("w", "root/envs/w")):
        assert conda_environment(name, variables) == str(tmp_path / path)
    assert conda_environment("now", variables) == "/opt/now"
    assert isinstance(conda_environment("gone", variables), Unknown)
    assert isinstance(conda_environment("base", variables), Unknown)


def projects(top: Path) -> None:
    for name in ("project", "plain", "workspace", "workspace/member", "unmanaged", "other"):
        (top / name / "deep").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "venv", "--without-pip", str(top / name / ".venv")]
        subprocess.run(command, check=True)
    text = '[project]\nname = "p"\nversion = "0"\nrequires-python = ">=3.9"\n'
    (top / "project" / "pyproject.toml").write_text(text)
    (top / "workspace" / "member" / "pyproject.toml").write_text(text)
    (top / "workspace" / "pyproject.toml").write_text(
        text.replace('"p"', '"w"') + '[tool.uv.workspace]\nmembers = ["member"]\n'
    )
    (top / "unmanaged" / "pyproject.toml").write_text(text + "[tool.uv]\nmanaged = false\n")


UV_CASES: list[tuple[str, str, dict[str, str]]] = [
    ("project", "uv run", {}),
    ("project/deep", "uv run", {}),
    ("plain/deep", "uv run", {}),
    ("workspace/member", "uv run", {}),
    ("project", "uv run", {"VIRTUAL_ENV": "TOP/other/.venv"}),
    ("project", "uv run --active", {"VIRTUAL_ENV": "TOP/other/.venv"}),
    ("project", "uv run --no-project", {"VIRTUAL_ENV": "TOP/other/.venv"}),
    ("project", "uv run --no-project", {}),
    ("plain", "uv run", {"VIRTUAL_ENV": "TOP/other/.venv"}),
    ("unmanaged", "uv run", {"VIRTUAL_ENV": "TOP/other/.venv"}),
    ("unmanaged", "uv run", {}),
    ("project", "uv run", {"CONDA_PREFIX": "TOP/other/.venv"}),
    ("plain", "uv run", {"CONDA_PREFIX": "TOP/other/.venv"}),
    ("project/deep", "uv run", {"UV_PROJECT_ENVIRONMENT": "../other/.venv"}),
    ("plain", "uv run", {"UV_PROJECT_ENVIRONMENT": "TOP/other/.venv"}),
    (".", "uv run --project project", {}),
    (".", "uv run --directory=project", {}),
]
EXPECTED = (
    *("project", "project", "plain", "workspace", "project", "other", "other", "project", "other", "other"),
    *("unmanaged", "project", "other", "other", "plain", "project", "project"),
)


@pytest.fixture(scope="module")
def uv_projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("projects").resolve()
    projects(top)
    return top


@pytest.mark.parametrize(("case", "expected"), [*zip(UV_CASES, EXPECTED, strict=True)])
def test_uv(uv_projects: Path, case: tuple[str, str, dict[str, str]], expected: str) -> None:
    folder, command, variables = case
    variables = {name: text.replace("TOP", str(uv_projects)) for name, text in variables.items()}
    found = choose(f"{command} torchrun a.py", uv_projects / folder, **variables)
    assert found == str(uv_projects / expected / ".venv" / "bin" / "python")


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
@pytest.mark.parametrize("case", UV_CASES)
def test_uv_itself_takes_the_same(uv_projects: Path, case: tuple[str, str, dict[str, str]]) -> None:
    folder, command, variables = case
    variables = {name: text.replace("TOP", str(uv_projects)) for name, text in variables.items()}
    found = choose(f"{command} torchrun a.py", uv_projects / folder, **variables)
    said = subprocess.run(
        [*command.split(), "python", "-c", "import sys; print(sys.executable)"],
        cwd=uv_projects / folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(uv_projects),
            "UV_OFFLINE": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            **variables,
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert isinstance(found, str)
    assert Path(found).parent == Path(said).parent


def test_what_uv_would_make_first_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    found = choose("uv run torchrun a.py", tmp_path)
    assert found == Unknown(f"uv would make {tmp_path / '.venv'} first")


def test_the_facts_are_those_of_the_chosen_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{place / 'path' / 'bin'}:/usr/bin:/bin")
    for command, python, name, launcher in (
        ("source a/bin/activate; torchrun x.py", None, "a", "a"),
        ("torchrun x.py", None, "path", "path"),
        ("torchrun x.py", str(place / "b"), "b", "b"),
        ("a/bin/torchrun x.py", None, "a", "path"),
    ):
        facts = diagnose(Request(command=command, directory=str(place), python=python)).case.facts
        assert facts.python.executable == str(place / name / "bin" / "python")
        assert not isinstance(facts.which, Unknown)
        assert facts.which["torchrun"] == str(place / launcher / "bin" / "torchrun")


def test_an_environment_that_is_not_known_has_no_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place / "nothing"))
    report = diagnose(Request(command="conda activate gone; torchrun x.py", directory=str(place)))
    facts = report.case.facts
    for value in (facts.packages, facts.which, facts.shebangs, facts.nvcc, facts.torch_cuda, facts.python.executable):
        assert isinstance(value, Unknown)
    assert facts.packages == Unknown("no conda environment named gone was found")
    assert not {"MGD112", "MGD113"} & {finding.code for finding in report.findings}
