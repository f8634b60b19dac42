"""The environment variables that Python text reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.knowledge.environment import read_variables


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os\nx = os.environ.get('HF_HOME', 'DEFAULT_X')", {"HF_HOME"}),
        ("x = os.getenv('A_B')", {"A_B"}),
        ("x = os.environ['RANK']", {"RANK"}),
        ("os.environ['RANK'] = '0'", set()),
        ("if 'FOO_BAR' in os.environ: pass", {"FOO_BAR"}),
        ("x = parse_flag_from_env('USE_X')", {"USE_X"}),
        ("x = get_int_from_env(['PMI_SIZE', 'OMPI_SIZE'], 1)", {"PMI_SIZE", "OMPI_SIZE"}),
        ("def f():\n    prefix = 'FSDP_'\n    return os.environ.get(prefix + 'VERSION')", {"FSDP_VERSION"}),
        ("def f(name):\n    return os.environ.get(f'PET_{name}')", {"PET_*"}),
        ("for k in ['AA_B', 'CC_D']:\n    os.environ.get(k)", {"AA_B", "CC_D"}),
        ("def f():\n    p = 'AA_'\ndef g():\n    return os.environ.get(p + 'X')", set()),
        ("os.environ.pop('GONE_X', None)", {"GONE_X"}),
        ("print('NOT_READ')", set()),
        ("this is no environ Python", set()),
    ],
)
def test_what_is_read(text: str, found: set[str]) -> None:
    assert read_variables(text) == found


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    assert isinstance(read_variables("env\n" + text), set)
