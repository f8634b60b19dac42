#!/usr/bin/env python3
"""Write docs/rules/*.md and its index from the rules, and the output that README.md shows.

``--check`` writes nothing and fails when something is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from mgpu_doctor.model.rule import Check
from mgpu_doctor.registry import BUILT_IN, load_checks
from mgpu_doctor.render.summary import family
from mgpu_doctor.rule_page import page_name, rule_page

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "docs" / "rules"
README = ROOT / "README.md"
OUTPUT = re.compile(r"(<!-- output of: mgpu-doctor (?P<arguments>.+?) -->\n```text\n)(?P<output>.*?)(```\n)", re.DOTALL)
COMMAND = "python tools/generate_docs.py"


def pages() -> dict[str, str]:
    """File name → text of everything that belongs into docs/rules."""
    checks = [check for check in load_checks().checks if check.distribution == BUILT_IN]
    found = {page_name(check.rule): rule_page(check.rule) for check in checks}
    found["index.md"] = index(checks)
    return found


def index(checks: list[Check]) -> str:
    """The catalogue, a table for each family."""
    lines = [
        "# Rules",
        "",
        f"{len(checks)} rules. Each page is made from the rule itself, and its examples are run as tests.",
    ]
    current = None
    for check in checks:
        rule = check.rule
        if family(rule.code) != current:
            current = family(rule.code)
            lines += [
                "",
                f"## {rule.code[:4]}xx {current}",
                "",
                "| code | rule | severity | cause |",
                "|---|---|---|---|",
            ]
        summary = rule.summary.replace("|", "\\|")
        fixable = ", fixable" if rule.fixable else ""
        lines.append(f"| [{rule.code}]({page_name(rule)}) | {rule.slug} | {rule.severity.value}{fixable} | {summary} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the output of its commands as it is now."""
    return OUTPUT.sub(
        lambda match: match[1] + output_of(match["arguments"]) + match[4], README.read_text(encoding="utf-8")
    )


def output_of(arguments: str) -> str:
    """What mgpu-doctor prints, 100 columns wide."""
    dropped = ("FORCE_COLOR", "CUDA_VISIBLE_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, "-m", "mgpu_doctor", *shlex.split(arguments)],
        env=environment | {"NO_COLOR": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"mgpu-doctor {arguments} failed: {done.stderr}")
    return done.stdout


def stale(wanted: dict[str, str]) -> list[str]:
    """Names of pages that are missing, differ, or have no rule any more."""
    present = {path.name: path.read_text(encoding="utf-8") for path in RULES.glob("*.md")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main() -> int:
    """Write the pages, or say that they are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a page is stale")
    arguments = parser.parse_args()
    wanted = pages()
    names = stale(wanted)
    text = readme() if README.exists() else ""
    old_readme = text != (README.read_text(encoding="utf-8") if README.exists() else "")
    if arguments.check:
        old = [f"docs/rules/{name}" for name in names] + ["README.md"] * old_readme
        if old:
            print(f"stale: {', '.join(old)}", file=sys.stderr)
            print(f"run: {COMMAND}", file=sys.stderr)
        return 1 if old else 0
    RULES.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in wanted:
            (RULES / name).write_text(wanted[name], encoding="utf-8")
        else:
            (RULES / name).unlink()
        print(f"{'wrote' if name in wanted else 'removed'} docs/rules/{name}")
    if old_readme:
        README.write_text(text, encoding="utf-8")
        print("wrote README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
