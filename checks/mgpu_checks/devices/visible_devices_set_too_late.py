"""The program sets CUDA_VISIBLE_DEVICES after torch was imported or CUDA was initialised."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Source,
    Span,
    Unknown,
    report,
)

_IMPORTED = 'import os\nimport torch\n\nos.environ["CUDA_VISIBLE_DEVICES"] = "2"\nnet = torch.nn.Linear(8, 8).cuda()\n'
_ASKED = (
    "import os\nimport torch\n\nif torch.cuda.is_available():\n    print('gpu')\n"
    'os.environ["CUDA_VISIBLE_DEVICES"] = "1,3"\nnet = torch.nn.Linear(8, 8).cuda()\n'
)
_FIRST = 'import os\n\nos.environ["CUDA_VISIBLE_DEVICES"] = "2"\n\nimport torch\n\nnet = torch.nn.Linear(8, 8).cuda()\n'
_FUNCTION = (
    'import os\n\nos.environ["CUDA_VISIBLE_DEVICES"] = "2"\n\n\ndef main():\n    import torch\n\n'
    "    torch.cuda.is_available()\n\n\nmain()\n"
)

RULE = Rule(
    code="MGD211",
    slug="visible-devices-set-too-late",
    title="CUDA_VISIBLE_DEVICES is set too late",
    severity=Severity.ERROR,
    summary="The program sets CUDA_VISIBLE_DEVICES after CUDA has read it, or after torch was imported.",
    why=(
        "CUDA reads the variable once, when the driver is initialised. `torch.cuda.is_available()`, "
        "`torch.cuda.current_device()`, `.cuda()` and the like do that; a list that is set behind them has no effect, "
        "and the program runs on GPU 0. `import torch` alone does not initialise CUDA in most releases (it did in "
        "1.12.0), but another import may, so that a list set behind it holds only by luck: a warning, not an error."
    ),
    bad=(
        Example("behind the import", "python fit.py", files={"fit.py": _IMPORTED}),
        Example("behind the first question", "python fit.py", files={"fit.py": _ASKED}),
    ),
    good=(
        Example("in front of the import", "python fit.py", files={"fit.py": _FIRST}),
        Example("the import is in a function", "python fit.py", files={"fit.py": _FUNCTION}),
        Example("on the command line", "CUDA_VISIBLE_DEVICES=2 python fit.py", files={"fit.py": "import torch\n"}),
    ),
    sources=(
        Reference(
            "torch 2.11.0+cu130 on one H200",
            "a list set after `import torch`, after device_count() and after manual_seed_all() still counts; after "
            "is_available() and current_device() it does not",
            ran=True,
        ),
        Reference("pytorch issue 80876, torch 1.12.0", "a list set after `import torch` had no effect in this release"),
        Reference(
            "pytorch issues 9158 (torch 0.4) and 23544 (torch 1.1.0)",
            "set it before torch is imported, or before CUDA is used",
        ),
    ),
    fix="set the variable in front of the command, or before torch is imported",
    fixable=True,
)

INITIALISES = frozenset(
    {
        ".cuda()",
        '.to("cuda")',
        "torch.cuda.is_available",
        "torch.cuda.current_device",
        "torch.cuda.current_stream",
        "torch.cuda.get_device_capability",
        "torch.cuda.get_device_name",
        "torch.cuda.get_device_properties",
        "torch.cuda.init",
        "torch.cuda.is_bf16_supported",
        "torch.cuda.mem_get_info",
        "torch.cuda.set_device",
        "torch.cuda.synchronize",
    }
)


def find(case: Case) -> Iterator[Finding]:
    """Programs in which the assignment comes too late."""
    seen = set()
    for launch in case.launches:
        program = launch.target.program
        if isinstance(program, Unknown) or program.source.name in seen:
            continue
        seen.add(program.source.name)
        finding = _late(program)
        if finding is not None:
            yield finding


def _late(program: Program) -> Finding | None:
    assigned = next((one for one in program.all("sets-variable") if one.detail.partition("=")[0] == VISIBLE), None)
    if assigned is None:
        return None
    first = next(
        (
            one
            for one in program.all("cuda-call", "set-device")
            if _initialises(one) and _runs_before(program, one, assigned)
        ),
        None,
    )
    imported = next((one for one in program.all("imports-torch") if _runs_before(program, one, assigned)), None)
    if first is None and imported is None:
        return None
    fix = _move(program, assigned, imported)
    if first is not None:
        call = first.detail if first.detail.startswith((".", "torch.")) else "torch.cuda.set_device"
        call += "" if call.endswith(")") else "()"
        return report(
            RULE,
            f"{VISIBLE} is set after {call} has initialised CUDA: the list has no effect.",
            program.locate(assigned),
            related=(Evidence("CUDA reads the variable here", program.locate(first)),),
            fix=fix,
        )
    if imported is None:
        return None
    return report(
        RULE,
        f"{VISIBLE} is set after torch is imported: it counts only if nothing has initialised CUDA by then (in torch "
        "1.12.0 the import itself did), otherwise the program runs on GPU 0 without a word.",
        program.locate(assigned),
        severity=Severity.WARNING,
        related=(Evidence("torch is imported here", program.locate(imported)),),
        fix=fix,
    )


def _initialises(seen: Seen) -> bool:
    return seen.kind == "set-device" or seen.detail in INITIALISES


def _runs_before(program: Program, one: Seen, other: Seen) -> bool:
    """Whether the first surely runs before the second: above it, and not in a function that is only defined."""
    if one.span.start >= other.span.start:
        return False
    if one.order == other.order:
        return not _in_definition(program.source, one.span.start, ("class ",))
    return not _in_definition(program.source, one.span.start)


_DEFINITIONS = ("def ", "class ", "async ", "@")


def _in_definition(source: Source, offset: int, kinds: tuple[str, ...] = _DEFINITIONS) -> bool:
    """Whether the top-level statement around an offset defines a function or a class."""
    lines = source.text[:offset].splitlines(keepends=True)
    if source.text[offset - 1 : offset] not in {"", "\n"} and lines and not lines[-1][:1].isspace():
        return lines[-1].startswith(kinds)
    for line in reversed(lines):
        if line.strip() and not line[0].isspace() and line[0] not in "#)]}":
            return line.startswith(kinds)
    return False


def _move(program: Program, assigned: Seen, imported: Seen | None) -> Fix:
    """Move the line above the import when it stands alone with a literal and os is known there."""
    title = "set it before torch is imported, or in front of the command"
    source = program.source
    if imported is None or "=" not in assigned.detail:
        return Fix(title)
    start = source.text.rfind("\n", 0, assigned.span.start) + 1
    end = source.text.find("\n", assigned.span.end)
    end = len(source.text) if end < 0 else end
    line = source.text[start:end]
    above = source.text.rfind("\n", 0, imported.span.start) + 1
    knows_os = re.search(r"^import os\b", source.text[:above], re.MULTILINE) is not None
    if line[:1].isspace() or source.text[start:end].strip() != source.slice(assigned.span) or not knows_os:
        return Fix(title)
    if source.text[above : imported.span.start].strip():
        return Fix(title)
    moved = (
        Edit(source, Span(above, above), line + "\n"),
        Edit(source, Span(start, min(end + 1, len(source.text))), ""),
    )
    return Fix("move the line above the import of torch", moved, safe=True)
