"""What the rules about shell text say of bash, asked of the bash that is here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("script", "printed", "complaint"),
    [
        ('X=0 bash -c "bash -c \\"echo [$X]\\""', "[]\n", ""),  # 308
        ("A=1; printenv A; export A=2; printenv A", "2\n", ""),  # 801
        ("INHERITED=new; bash -c 'echo $INHERITED'", "new\n", ""),  # 801
        ("printf '<%s>' a \\ \nb", "<a>< >", "b: command not found"),  # 802
        ("printf '<%s>' a \\ # c", "<a>< #><c>", ""),  # 802
        ("printf '<%s>' a \\  # c", "<a>< >", ""),  # 802, two blanks
        ("echo a\n--b", "a\n", "--b: command not found"),  # 803
        ("echo a \\\necho b", "a echo b\n", ""),  # 804
        ("echo a \\\n# b\n--c", "a\n", "--c: command not found"),  # 805
        ("printf '<%s>' a\r", "<a\r>", ""),  # 806
        ("printf '<%s>' a \\\r\n--b", "<a><\r>", "--b: command not found"),  # 806
        ("printf '<%s>' \u201ca b\u201d", "<\u201ca><b\u201d>", ""),  # 807
        ("printf '<%s>' a\u00a0b", "<a\u00a0b>", ""),  # 807
        ("printf '<%s>' a\\\n--b", "<a--b>", ""),  # 808
        ("A=\"x 'y z'\"; printf '<%s>' $A", "<x><'y><z'>", ""),  # 809
        ("A=\"'x'\" printenv A", "'x'\n", ""),  # 809
        ("printf '<%s>' --a $UNSET b", "<--a><b>", ""),  # 810
        ("echo a > f --b; cat f", "a --b\n", ""),  # 813
        ('A=(0 1); B=${A[@]:0:2}; printf \'<%s>\' "$B" "$(seq 0 1)"', "<0 1><0\n1>", ""),  # 815
    ],
)
def test_bash_does_as_the_rules_say(script: str, printed: str, complaint: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "INHERITED": "old"},
        check=False,
    )
    assert done.stdout.decode() == printed
    assert complaint in done.stderr.decode()
    assert bool(done.stderr) == bool(complaint)
