"""Checks of other distributions: found, kept apart, refused where they clash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_doctor.testing import check_examples
from plugin_sites import FIXTURES, lay_out

Run = Callable[..., "subprocess.CompletedProcess[str]"]

BAD = "torchrun --nproc-per-node 2 train.py --output_dir /tmp/run"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An empty directory for distributions."""
    path = tmp_path / "site"
    path.mkdir()
    return path


@pytest.fixture
def run(site: Path) -> Run:
    """Run mgpu-doctor with the distributions in ``site`` on the path."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "mgpu_doctor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return call


@pytest.fixture
def sample(site: Path) -> None:
    lay_out(site, "acme-mgpu-checks", "sample_plugin", "acme_checks")


@pytest.fixture
def hostile(site: Path) -> None:
    lay_out(site, "hostile-checks", "hostile_plugin", "hostile_checks")


@pytest.mark.usefixtures("sample")
def test_a_plugin_is_found_and_its_rule_applied(run: Run) -> None:
    done = run("check", "--facts", "none", "--format", "json", "--fail-on", "warning", "--cmd", BAD)
    document = json.loads(done.stdout)
    (finding,) = [finding for finding in document["findings"] if finding["code"] == "ACME101"]
    assert finding["severity"] == "warning"
    assert BAD[finding["column"] - 1 : finding["end_column"] - 1] == "--output_dir /tmp/run"
    assert done.returncode == 1
    assert "/shared/run" in document["corrected"]["text"]


@pytest.mark.usefixtures("sample")
def test_a_plugins_rule_is_listed_and_explained(run: Run) -> None:
    assert "ACME101 output-on-local-disk warning" in run("rules").stdout
    page = run("explain", "output-on-local-disk").stdout
    assert page.startswith("# ACME101 output-on-local-disk")
    assert "from acme-mgpu-checks" in page


@pytest.mark.usefixtures("sample", "hostile")
def test_a_crash_is_isolated_and_the_run_called_incomplete(run: Run) -> None:
    done = run("check", "--facts", "none", "--format", "json", "--fail-on", "never", "--cmd", BAD)
    document = json.loads(done.stdout)
    (crashed,) = document["crashed"]
    assert (crashed["code"], crashed["distribution"]) == ("BAD101", "hostile-checks")
    assert "the guest fell over" in crashed["reason"]
    assert "ACME101" in [finding["code"] for finding in document["findings"]]
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("hostile")
def test_a_taken_code_or_slug_is_refused_and_the_others_stay(run: Run) -> None:
    done = run("rules", "--format", "json")
    document = json.loads(done.stdout)
    owners = {rule["code"]: rule["distribution"] for rule in document["rules"]}
    assert owners["MGD301"] == "mgpu-doctor"
    assert "BAD102" not in owners
    assert owners["BAD103"] == "hostile-checks"
    messages = [problem["message"] for problem in document["problems"]]
    assert len(messages) == 2
    assert "MGD301 is already taken by mgpu-doctor" in messages[0]
    assert "port-in-use is already taken by mgpu-doctor" in messages[1]


@pytest.mark.usefixtures("sample")
def test_a_plugin_that_cannot_be_imported_leaves_the_others_alone(run: Run, site: Path) -> None:
    lay_out(site, "broken-checks", "", "broken_checks", broken=True)
    done = run("check", "--facts", "none", "--cmd", BAD)
    assert "broken-checks: cannot be loaded: ImportError: its own dependency is missing" in done.stdout
    assert "ACME101" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_samples_own_examples_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES / "sample_plugin" / "src"))
    acme_checks = __import__("acme_checks")
    for check in acme_checks.CHECKS:
        check_examples(check)
    for name in [name for name in sys.modules if name.startswith("acme_checks")]:
        monkeypatch.delitem(sys.modules, name)
