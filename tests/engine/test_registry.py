from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mgpu_doctor.registry import GROUP, load_checks

CHECK = """
from mgpu_doctor.authoring import Check, Example, Reference, Rule, Severity
def rule(code, slug):
    return Rule(code=code, slug=slug, title="t", severity=Severity.ADVICE, summary="s", why="w",
                bad=(Example("b"),), good=(Example("g"),), sources=(Reference("x 1", "y"),))
def find(case):
    return ()
CHECKS = [Check(rule({code!r}, {slug!r}), find)]
"""


def install(top: Path, name: str, module: str, code: str, value: str | None = None) -> None:
    (top / f"{module}.py").write_text(code)
    info = top / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[console_scripts]\nx = y:z\n\n[{GROUP}]\nmain = {value or module + ':CHECKS'}\n"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_checks_of_installed_distributions_are_found(site: Path) -> None:
    install(site, "acme-checks", "acme_found", CHECK.format(code="ACM101", slug="acme-one"))
    registry = load_checks([str(site)])
    assert [(check.rule.code, check.distribution) for check in registry.checks] == [("ACM101", "acme-checks")]
    assert registry.problems == ()
    assert registry.find("acme-one") is registry.find("acm101") is registry.checks[0]
    assert registry.find("nothing") is None


def test_the_built_in_checks_arrive_through_the_same_group() -> None:
    registry = load_checks()
    assert registry.problems == ()
    assert {check.distribution for check in registry.checks} == {"mgpu-doctor"}
    assert len(registry.checks) > 40


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        ("raise RuntimeError('on import')", None, "RuntimeError: on import"),
        ("CHECKS = [1]", None, "is not a Check"),
        ("CHECKS = 5", None, "TypeError"),
        ("", "no_such_module_anywhere:CHECKS", "ModuleNotFoundError"),
        ("", None, "AttributeError"),
        (CHECK.format(code="acm1", slug="acme-two"), None, "letters and three digits"),
        (CHECK.format(code="ACM102", slug="Acme Two"), None, "slug"),
    ],
)
def test_a_broken_distribution_is_named_and_the_others_go_on(
    site: Path, code: str, value: str | None, message: str
) -> None:
    module = f"broken_{abs(hash((code, value, message))):x}"
    install(site, "broken-checks", module, code, value)
    install(site, "sound-checks", module + "_sound", CHECK.format(code="SND101", slug="sound-one"))
    registry = load_checks([str(site)])
    assert [check.rule.code for check in registry.checks] == ["SND101"]
    (problem,) = registry.problems
    assert problem.subject == "broken-checks"
    assert message in problem.message


def test_a_code_or_slug_that_is_taken_is_refused(site: Path) -> None:
    install(site, "copycat", "copycat_mod", CHECK.format(code="MGD301", slug="copy-of-port"))
    install(site, "copycat-two", "copycat_two_mod", CHECK.format(code="CPY301", slug="port-in-use"))
    registry = load_checks([str(site), *sys.path])
    assert {check.distribution for check in registry.checks} == {"mgpu-doctor"}
    assert {(p.subject, "already taken by mgpu-doctor" in p.message) for p in registry.problems} == {
        ("copycat", True),
        ("copycat-two", True),
    }
