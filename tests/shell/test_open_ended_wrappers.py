from __future__ import annotations

import pytest

from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.shell import parse_shell


@pytest.mark.parametrize(
    "text", ['exec "$@"', "sudo $CMD", "timeout 5 $X", "nohup $CMD", "srun $CMD", "srun -n $N $CMD"]
)
def test_a_wrapper_whose_command_is_unknown_is_read_to_its_end(text: str) -> None:
    script = parse_shell(Excerpt.whole(Source("<command>", text, "command")))
    assert len(script.commands) == 1
