"""A list of devices in a form that CUDA reads differently from how it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, Element, assignments, elements, gpu_ids, kept, reaching, value_edit
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Option,
    Reference,
    Rule,
    Severity,
    Source,
    Span,
    Variable,
    dataclass,
    replace,
    report,
)

_DRIVER = "driver 580.159.04 with one H200, cuInit and cuDeviceGetCount"

RULE = Rule(
    code="MGD204",
    slug="visible-devices-malformed",
    title="The list of devices is malformed",
    severity=Severity.ERROR,
    summary="The list of devices holds blanks, ranges, brackets, quotes, duplicates or mixed kinds of names.",
    why=(
        "CUDA never complains about CUDA_VISIBLE_DEVICES. It takes the digits that an element starts with and ignores "
        "what follows (`0-3` is GPU 0 alone), stops at the first element that is no index and no UUID (`[0,1]`, "
        '`cuda:0`, `"0"` and `all` hide every GPU), and fails to start when a device is named twice. A blank behind '
        "the comma ends the value in the shell, which then tries to run `1`."
    ),
    bad=(
        Example("a range", "CUDA_VISIBLE_DEVICES=0-3 torchrun --nproc_per_node 4 train.py"),
        Example("a blank behind the comma", "CUDA_VISIBLE_DEVICES=0, 1 python train.py", facts=None),
        Example("a blank in an export", "export CUDA_VISIBLE_DEVICES=2, 3\npython train.py"),
        Example("brackets", "CUDA_VISIBLE_DEVICES=[0,1] python train.py"),
        Example("quotes that stay", "CUDA_VISIBLE_DEVICES='\"0,1\"' python train.py"),
        Example("torch's names", "export CUDA_VISIBLE_DEVICES=cuda:0,cuda:1\npython train.py"),
        Example("a device named twice", "CUDA_VISIBLE_DEVICES=0,0 torchrun --nproc_per_node 2 train.py"),
        Example("semicolons", "CUDA_VISIBLE_DEVICES='0;1' python train.py"),
        Example("an empty element", "CUDA_VISIBLE_DEVICES=,0,1 python train.py"),
        Example("blanks beside the sign", "CUDA_VISIBLE_DEVICES = 0,1 torchrun --nproc_per_node 2 train.py"),
        Example(
            "a blank behind the sign", "CUDA_VISIBLE_DEVICES= 0,1 torchrun --nproc_per_node 2 train.py", facts=None
        ),
        Example("docker's own form", "docker run --rm --gpus device=0,1 img python train.py"),
        Example("a range for the workers", "accelerate launch --num_processes 4 --multi_gpu --gpu_ids 0-3 train.py"),
    ),
    good=(
        Example(
            "an array joined by blanks is another rule's",
            "G=(0 1)\nexport CUDA_VISIBLE_DEVICES=${G[@]}\ntorchrun --nproc_per_node 2 train.py",
        ),
        Example("so is a full-width comma", "CUDA_VISIBLE_DEVICES=0\uff0c1 torchrun --nproc_per_node 2 train.py"),
        Example("a plain list", "CUDA_VISIBLE_DEVICES=0,1 python train.py"),
        Example("quotes that the shell removes", 'CUDA_VISIBLE_DEVICES="4,5" python train.py'),
        Example("UUIDs", "CUDA_VISIBLE_DEVICES=GPU-00000001,GPU-00000002 python train.py"),
        Example("a MIG instance", "CUDA_VISIBLE_DEVICES=MIG-00000000-1111-2222-3333-444444444444 python train.py"),
        Example("hidden on purpose", "CUDA_VISIBLE_DEVICES=-1 python train.py"),
        Example("unknown", "CUDA_VISIBLE_DEVICES=$GPUS python train.py"),
        Example("docker's own form", """docker run --rm --gpus '"device=0,1"' img python train.py"""),
        Example("every GPU for the workers", "accelerate launch --gpu_ids all train.py"),
    ),
    sources=(
        Reference(
            _DRIVER, '`0-3`, `0;1`, `0 1`, `0,`, ` 0`: device 0; `[0]`, `"0"`, `cuda:0`, `,0`, `all`: none', ran=True
        ),
        Reference(_DRIVER, "`0,0`: cuInit fails with error 101 (CUDA_ERROR_INVALID_DEVICE)", ran=True),
        Reference(_DRIVER, "`<UUID>,0`: the index behind the UUID is dropped; a UUID behind a blank too", ran=True),
        Reference("torch 2.13.0, cuda/__init__.py _parse_visible_devices()", "reads the list in the same way"),
        Reference(
            "deepspeed 0.16.9, launcher/runner.py parse_node_config()",
            "int() on every slot of --include, and on every element of the variable that becomes --include",
        ),
        Reference(
            "NVIDIA/nvidia-docker issues 1026 and 1257 (docker 19.03)",
            "--gpus device=0,1: cannot set both Count and DeviceIDs on device request; the inner quotes are needed",
        ),
    ),
    fix="write the indices with commas and nothing else: 0,1,2,3",
    fixable=True,
)

_ENGINES = frozenset({"docker", "podman", "nerdctl"})
HIDDEN = frozenset({"", "-1", "nodevfiles", "none", "void"})
"""Values that hide every GPU and are used for that."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a list, what CUDA makes of it, and the list as it was meant (None when that is not clear)."""

    reason: str
    effect: str
    meant: str | None
    severity: Severity = Severity.ERROR


def find(case: Case) -> Iterator[Finding]:
    """Lists in variables and in launchers' options."""
    for variable in assignments(case):
        if variable.name == VISIBLE:
            yield from _in_variable(variable)
    for command in case.commands:
        yield from _for_docker(command)
        yield from _blank_at_sign(command)
    for launch in case.launches:
        yield from _in_options(launch)
        yield from _for_deepspeed(case, launch)


def _in_variable(variable: Variable) -> Iterator[Finding]:
    if variable.location is not None:
        split = _split_by_blank(variable.location.source, variable.location.span)
        if split is not None:
            yield _blank(variable, *split)
            return
    fault = _fault(variable.text)
    if fault is None or _belongs_to_another_rule(variable):
        return
    edit = None if fault.meant is None else value_edit(variable, fault.meant)
    yield report(
        RULE,
        f"{VISIBLE}={variable.text}: {fault.reason}; {fault.effect}.",
        variable.location,
        subject=None if variable.location is not None else f"{VISIBLE} in the environment",
        severity=fault.severity,
        fix=None if fault.meant is None else _meant(fault.meant, edit),
    )


def _belongs_to_another_rule(variable: Variable) -> bool:
    """Whether typographic characters (MGD807) or an array joined by blanks (MGD815) are at fault."""
    at, value = variable.location, variable.value
    if at is None or value is None or variable.text is None:
        return False
    array = re.search(r"\$\{\w+\[[@*]\]", at.source.slice(at.span)) is not None
    return not variable.text.isascii() or (array and " " in variable.text)


def _meant(text: str, edit: Edit | None) -> Fix:
    return Fix(f"write {text}", () if edit is None else (edit,), safe=edit is not None)


def _split_by_blank(source: Source, span: Span) -> tuple[Span, str] | None:
    """The rest of a list that the shell cut off at a blank: its span, and the whole list as it was meant."""
    written = source.slice(span)
    value = re.search(r"[=\s:](\d+(?:,\d*)*)$", written)
    if value is None:
        return None
    rest = re.compile(r"[ \t]+,?\d+(?:[ \t]*,[ \t]*\d+)*,?(?![^\s;&|])|[ \t]+,[ \t]*\d+(?![^\s;&|])").match(
        source.text, span.end
    )
    if rest is None:
        return None
    if not value.group(1).endswith(",") and not rest.group().strip().startswith(","):
        return None
    numbers = re.findall(r"\d+", value.group(1) + rest.group())
    return Span(span.end - len(value.group(1)), rest.end()), ",".join(numbers)


def _blank(variable: Variable, span: Span, meant: str) -> Finding:
    assert variable.location is not None
    source = variable.location.source
    first = source.slice(Span(span.start, variable.location.span.end))
    name = source.slice(Span(variable.location.span.end, span.end)).split()[0]
    end = (
        f"then tries to run `{name}`" if variable.scope in {"prefix", "env"} else f"and takes `{name}` for another name"
    )
    return report(
        RULE,
        f"The blank ends the list: the shell sets {VISIBLE}={first} {end}.",
        Location(source, Span(variable.location.span.start, span.end)),
        fix=Fix(f"write {meant} without blanks", (replace(source, span, meant),), safe=True),
    )


def _fault(text: str | None) -> Fault | None:
    if text is None or text.strip().lower() in HIDDEN:
        return None
    found = elements(text)
    left = kept(found)
    twice = _named_twice(left)
    if twice is not None:
        meant = ",".join(dict.fromkeys(element.text.strip() for element in left))
        return Fault(f"{twice} is named twice", "CUDA then fails to start and no GPU is left", meant)
    cut = [element for element in left if element.rest.strip()]
    ended = _ended(found, left)
    if cut:
        first = cut[0]
        reason = (
            "CUDA knows no ranges" if re.match(r"\s*\d+\s*-\s*\d+", first.text) else "elements are separated by commas"
        )
        return Fault(reason, f"CUDA reads {first.text.strip()} as {first.index} alone", _as_meant(text))
    if ended is not None:
        return Fault(_reason(ended, left), _effect(left), _as_meant(text))
    return _untidy(found, left)


def _named_twice(left: tuple[Element, ...]) -> str | None:
    seen = set()
    for element in left:
        name = element.text.strip().lower() if element.index is None else str(element.index)
        if name in seen:
            return name
        seen.add(name)
    return None


def _ended(found: tuple[Element, ...], left: tuple[Element, ...]) -> Element | None:
    """The element that ended the list by its form; None for a list that is whole or was ended by ``-1``."""
    if len(left) == len(found):
        return None
    element = found[len(left)]
    if element.index is not None and element.index < 0:
        return None
    if element.kind == "empty" and len(left) == len(found) - 1 and left:
        return None
    return element


def _reason(element: Element, left: tuple[Element, ...]) -> str:
    text = element.text.strip()
    if element.kind == "empty":
        return "an element is empty"
    if element.kind != "other" and left:
        return f"indices and UUIDs are mixed, and CUDA takes only the kind that comes first ({left[0].text})"
    if text.lower() == "all":
        return "`all` is a word of NVIDIA_VISIBLE_DEVICES that CUDA does not know"
    if left and left[0].kind != "index" and text.lower().startswith(("gpu-", "mig-")):
        return "a blank stands in front of a UUID"
    return f"`{text}` is neither an index nor a UUID"


def _effect(left: tuple[Element, ...]) -> str:
    if not left:
        return "CUDA stops there and no GPU is visible"
    return f"CUDA stops there and sees only {', '.join(element.text.strip() for element in left)}"


def _untidy(found: tuple[Element, ...], left: tuple[Element, ...]) -> Fault | None:
    tidy = ",".join(element.text.strip() for element in left)
    if ",".join(element.text for element in found) == tidy:
        return None
    if any(element.kind == "index" and element.index is not None and element.index < 0 for element in found):
        return None
    return Fault(
        "blanks or a comma at the end are not part of the form",
        "CUDA ignores them, but other programs that split the list do not",
        tidy,
        Severity.ADVICE,
    )


def _as_meant(text: str) -> str | None:
    """The plain list of indices that somebody meant, None when it cannot be told."""
    plain = re.sub(r"cuda:|gpu:|gpu(?=\d)", "", text, flags=re.IGNORECASE)
    plain = re.sub(r"[\[\](){}'\"“”‘’]", "", plain).strip()
    parts = [part for part in re.split(r"[,;:，、|\s]+", re.sub(r"\s*-\s*", "-", plain)) if part]
    out: list[int] = []
    for part in parts:
        match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        if match is None:
            return None
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            return None
        out.extend(range(first, last + 1))
    return ",".join(str(index) for index in dict.fromkeys(out)) or None


def _in_options(launch: Launch) -> Iterator[Finding]:
    chosen = gpu_ids(launch)
    if chosen is not None and chosen.location is not None:
        split = _split_option(launch, "accelerate", "gpu_ids")
        if split is not None:
            yield split
            return
        fault = _fault(chosen.text)
        if fault is not None and fault.severity is Severity.ERROR:
            fix = None
            if fault.meant is not None:
                typed = chosen.location.source.slice(chosen.location.span) == chosen.text
                edits = (replace(chosen.location.source, chosen.location.span, fault.meant),) if typed else ()
                fix = Fix(f"write {fault.meant}", edits, safe=bool(edits))
            yield report(
                RULE,
                f"{chosen.name} {chosen.text}: {fault.reason}; the workers get it as {VISIBLE}, and {fault.effect}.",
                chosen.location,
                fix=fix,
            )


def _split_option(launch: Launch, launcher: str, dest: str) -> Finding | None:
    layer = launch.layer(launcher)
    option = layer.option(dest) if layer is not None else None
    if option is None or not option.values or option.values[0].origin is not None:
        return None
    source = launch.command.source
    split = _split_by_blank(source, Span(option.span.start, option.values[0].span.end))
    if split is None:
        return None
    span, meant = split
    target = launch.target.value
    return report(
        RULE,
        f"The blank ends the list: {option.flag} gets {option.value} and {launcher} takes `{target}` for the script.",
        launch.command.locate(Span(option.span.start, span.end)),
        fix=Fix(f"write {meant} without blanks", (replace(source, span, meant),), safe=True),
    )


def _blank_at_sign(command: Command) -> Iterator[Finding]:
    """``CUDA_VISIBLE_DEVICES = 0,1 cmd``: a blank beside the sign makes a command of the name or of the list."""
    source = command.source
    found = re.compile(
        rf"(?:(?:export|env)[ \t]+)?{VISIBLE}(?P<sign>[ \t]*=[ \t]+|[ \t]+=|:[ \t]*)(?P<list>\d+(?:,\d+)*)(?![^\s;&|])"
    ).match(source.text, command.span.start)
    if found is None:
        return
    sign = Span(found.start("sign"), found.end("sign"))
    tried = found.group("list") if found.group("sign").startswith("=") else VISIBLE
    if found.group("sign").startswith(":"):
        tried = f"{VISIBLE}:{found.group('list')}"
    yield report(
        RULE,
        f"No list is set: an assignment is written with `=` and without blanks; the shell takes `{tried}` for a name.",
        Location(source, Span(found.start(), found.end())),
        fix=Fix(f"write {VISIBLE}={found.group('list')}", (replace(source, sign, "="),), safe=True),
    )


def _for_docker(command: Command) -> Iterator[Finding]:
    """``--gpus device=0,1``: the value is read as CSV, so that ``1`` becomes a count beside the device."""
    words = [word for wrapper in command.wrappers if wrapper.name.split()[0] in _ENGINES for word in wrapper.words]
    if command.name in _ENGINES:
        words.extend(command.words)
    for at, word in enumerate(words):
        before = words[at - 1].value if at else None
        text = word.value or ""
        head = "--gpus=" if text.startswith("--gpus=") else ""
        value = text.removeprefix(head)
        if (not head and before != "--gpus") or not re.fullmatch(r"device=[\w-]+(?:,[\w-]+)+", value):
            continue
        edits: tuple[Edit, ...] = ()
        if word.origin is None and word.is_literal and command.source.kind in {"command", "shell", "markdown"}:
            edits = (replace(command.source, word.span, f"""{head}'"{value}"'"""),)
        yield report(
            RULE,
            f"--gpus {value}: docker splits the value at the comma and takes `{value.partition(',')[2]}` for a count: "
            '"cannot set both Count and DeviceIDs on device request".',
            command.locate(word.span),
            fix=Fix(f"""write --gpus '"{value}"'""", edits, safe=bool(edits)),
        )


def _for_deepspeed(case: Case, launch: Launch) -> Iterator[Finding]:
    layer = launch.layer("deepspeed")
    if layer is None or layer.opaque is not None:
        return
    for dest in ("include", "exclude"):
        option = layer.option(dest)
        if option is not None:
            split = _split_option(launch, "deepspeed", dest)
            finding = split or _bad_slots(launch, option)
            if finding is not None:
                yield finding
    variable = reaching(case, launch, VISIBLE)
    filtered = any(layer.option(dest) for dest in ("include", "exclude", "num_gpus", "num_nodes", "hostfile"))
    if variable is None or filtered or variable.text is None or variable.text.strip().lower() in HIDDEN:
        return
    fault = _fault(variable.text)
    if _slots_readable(variable.text) or (fault is not None and fault.severity is Severity.ERROR):
        return
    yield report(
        RULE,
        f"deepspeed turns {VISIBLE}={variable.text} into --include localhost:{variable.text} and cannot read it: "
        "every element has to be an index.",
        variable.location,
        subject=None if variable.location is not None else f"{VISIBLE} in the environment",
        evidence=("runner.py parse_node_config(): ValueError from int()",),
        fix=_deepspeed_fix(variable),
    )


def _deepspeed_fix(variable: Variable) -> Fix | None:
    meant = _as_meant(variable.text or "")
    if meant is None:
        return Fix("name the GPUs by index")
    return _meant(meant, value_edit(variable, meant))


def _slots_readable(text: str) -> bool:
    return all(re.fullmatch(r"\s*[+-]?\d+(?:_\d+)*\s*", part) for part in text.split(","))


def _bad_slots(launch: Launch, option: Option) -> Finding | None:
    if option.value is None:
        return None
    for node in option.value.split("@"):
        host, colon, slots = node.partition(":")
        if not colon or _slots_readable(slots):
            continue
        meant = _as_meant(slots)
        fix = None
        if meant is not None:
            text = option.value.replace(node, f"{host}:{meant}")
            literal = launch.command.source.slice(option.values[0].span) == option.value
            edits = (replace(launch.command.source, option.values[0].span, text),) if literal else ()
            fix = Fix(f"write {host}:{meant}", edits, safe=bool(edits))
        return report(
            RULE,
            f"{option.flag} {option.value}: deepspeed reads every slot with int(), and `{slots}` is no list "
            "of indices.",
            launch.command.locate(option.span),
            fix=fix,
        )
    return None
