"""The page about facts names every key that is read, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mgpu_doctor.collect import facts_file, facts_values
from mgpu_doctor.collect.facts_file import load_facts

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "facts.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """The keys of the first table below a heading, and what is said of each."""
    text = re.split(r"\n#+ ", PAGE.partition(f" {heading}\n")[2])[0]
    found = {}
    for names, said in re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE):
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), said))
    return found


def test_every_key_is_described() -> None:
    described: dict[str, str] = {}
    for heading in ("The document", "GPUs and their driver", "The host", "Software"):
        described.update(rows(heading))
    assert described.keys() == {*facts_file._TAKEN}


def test_what_null_means_is_described() -> None:
    described: dict[str, str] = {}
    for heading in ("GPUs and their driver", "The host", "Software"):
        described.update(rows(heading))
    assert {key for key, said in described.items() if "or null" in said} == facts_file.NULLABLE


def test_every_key_of_a_gpu_and_a_process_is_described() -> None:
    assert rows("A GPU").keys() == {"index", "mig_devices", *facts_values.GPU_KEYS}
    assert rows("A process on a GPU").keys() == {"gpu", *facts_values.PROCESS_KEYS}


def test_keys_of_small_objects_are_described() -> None:
    for key, keys in (("paths", facts_values.PATH_KEYS), ("models", facts_values.MODEL_KEYS)):
        said = {**rows("The host"), **rows("Software")}[key]
        assert not [name for name in keys if f"`{name}`" not in said]
    assert not [name for name in facts_values.PYTHON_KEYS if f"`{name}`" not in rows("Software")["python"]]


def test_the_example_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "facts.json"
    file.write_text(block)
    assert load_facts(str(file)).other is None
    assert json.loads(block).keys() <= facts_file._TAKEN
