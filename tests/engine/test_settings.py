from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.errors import InputError
from mgpu_doctor.settings import Settings, load_settings


def test_the_nearest_file_counts_and_a_repository_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / "mgpu-doctor.toml").write_text('ignore = ["MGD1"]\n')
    inner = tmp_path / "repo" / "deep"
    inner.mkdir(parents=True)
    assert load_settings(str(inner)).ignore == ("MGD1",)
    (tmp_path / "repo" / ".git").mkdir()
    assert load_settings(str(inner)).ignore == ()
    (tmp_path / "repo" / "pyproject.toml").write_text('[tool.mgpu-doctor]\nselect = ["MGD2"]\nfail-on = "warning"\n')
    settings = load_settings(str(inner))
    assert (settings.select, settings.fail_on) == (("MGD2",), "warning")


def test_a_pyproject_without_our_table_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.mgpu-doctor]\nignore = ['MGD1']\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert load_settings(str(inner)).ignore == ("MGD1",)


def test_selecting_and_ignoring() -> None:
    settings = Settings(select=("MGD2", "port-in-use"), ignore=("MGD204",))
    assert settings.selects("MGD201", "visible-devices-ignored")
    assert settings.selects("MGD301", "port-in-use")
    assert not settings.selects("MGD204", "visible-devices-malformed")
    assert not settings.selects("MGD302", "port-shared")


def test_per_file_ignores_are_relative_to_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "mgpu-doctor.toml").write_text('[per-file-ignores]\n"docs/*.md" = ["MGD121"]\n')
    settings = load_settings(str(tmp_path))
    assert settings.ignored_in(str(tmp_path / "docs" / "a.md"), "MGD121", "placeholder-left")
    assert not settings.ignored_in(str(tmp_path / "docs" / "a.md"), "MGD301", "port-in-use")
    assert not settings.ignored_in(str(tmp_path / "a.md"), "MGD121", "placeholder-left")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("selct = []\n", "unknown setting 'selct'", "select"),
        ("select = 'MGD1'\n", "not a list", None),
        ("fail-on = 'bad'\n", "'fail-on' is 'bad'", "warning"),
        ("per-file-ignores = 3\n", "not a table", None),
        ("facts = 3\n", "not a string", None),
        ("select = [\n", "not valid TOML", None),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    (tmp_path / "mgpu-doctor.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_settings(str(tmp_path))
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    if hint is not None:
        assert caught.value.hint is not None
        assert hint in caught.value.hint
