"""The documents say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mgpu_doctor.cli.verb import VERBS
from plugin_sites import FIXTURES

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_rule_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stale_pages_are_named_with_the_command_that_helps(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "generate_docs.py"
    script.write_text((ROOT / "tools" / "generate_docs.py").read_text())
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "python tools/generate_docs.py" in done.stderr
    subprocess.run([sys.executable, str(script)], capture_output=True, check=True)
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0
    page = next((tmp_path / "docs" / "rules").glob("MGD*.md"))
    page.write_text(page.read_text() + "more\n")
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert page.name in done.stderr


@pytest.mark.parametrize(
    "part", ["pyproject.toml", "src/acme_checks/__init__.py", "src/acme_checks/output_on_local_disk.py"]
)
def test_the_guide_quotes_the_tested_plugin(part: str) -> None:
    page = (ROOT / "docs" / "writing-a-check.md").read_text()
    assert (FIXTURES / "sample_plugin" / part).read_text() in page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text()):
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_every_verb_is_described() -> None:
    page = (ROOT / "docs" / "usage.md").read_text()
    assert not [verb for verb in VERBS if f"`{verb}" not in page]


def test_ci_runs_the_readmes_commands() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = (ROOT / ".ci" / "run").read_text()
    numbers = [int(number) for number in re.findall(r"\$\(block (\d)\)", script)]
    first, second = (blocks[number - 1] for number in numbers)
    assert first.startswith("python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/mgpu-doctor explain")
    assert second == '.venv/bin/pip install -q -e ".[dev]" && tools/verify\n'
