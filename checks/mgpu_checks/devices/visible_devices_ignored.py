"""The launcher drops CUDA_VISIBLE_DEVICES, so that the job runs on other GPUs than the ones named."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import (
    VISIBLE,
    at_least,
    elements,
    gpu_count,
    indices,
    is_typed,
    listed,
    reaching,
    without_variable,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Option,
    Reference,
    Rule,
    Severity,
    Unknown,
    Variable,
    delete_words,
    replace,
    report,
)

FILTERS = ("num_gpus", "include", "exclude", "num_nodes")
READS_VARIABLE = "0.5.7"
PHYSICAL_SLOTS = "0.15.2"

RULE = Rule(
    code="MGD201",
    slug="visible-devices-ignored",
    title="CUDA_VISIBLE_DEVICES is ignored by the launcher",
    severity=Severity.ERROR,
    summary="The deepspeed launcher drops CUDA_VISIBLE_DEVICES and uses other GPUs than the ones named.",
    why=(
        "On one machine `deepspeed` turns CUDA_VISIBLE_DEVICES into `--include localhost:…`, but only when none of "
        "`--num_gpus`, `--include`, `--exclude` and `--num_nodes` is given. With one of them it prints one line, "
        "deletes the variable and counts physical GPUs from 0. The job then shares GPUs with whoever runs there, "
        "and the GPUs that were reserved stay idle. Releases before 0.5.7 never read the variable."
    ),
    bad=(
        Example("a count beside the list", "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed --num_gpus 4 train.py"),
        Example("a count smaller than the list", "CUDA_VISIBLE_DEVICES=2,3,5 deepspeed --num_gpus=2 train.py"),
        Example(
            "exported above",
            "export CUDA_VISIBLE_DEVICES=1,2\ndeepspeed --num_gpus 2 --master_port 29511 train.py",
            facts=None,
        ),
        Example("a filter that counts from 0", "CUDA_VISIBLE_DEVICES=2,3 deepspeed --include localhost:0,1 train.py"),
        Example(
            "a release with contiguous slots",
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed --num_gpus 2 train.py",
            facts={"packages": {"deepspeed": "0.12.6", "torch": "2.1.2"}},
        ),
        Example("one node asked for by number", "CUDA_VISIBLE_DEVICES=0,1 deepspeed --num_nodes 1 train.py"),
    ),
    good=(
        Example("the list alone", "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed train.py"),
        Example(
            "the filter names the same GPUs", "CUDA_VISIBLE_DEVICES=4,5 deepspeed --include localhost:4,5 train.py"
        ),
        Example("the count takes the same GPUs", "CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --num_gpus 4 train.py"),
        Example("another launcher", "CUDA_VISIBLE_DEVICES=4,5 torchrun --nproc_per_node 2 train.py"),
        Example(
            "the launcher of accelerate",
            "CUDA_VISIBLE_DEVICES=4,5 accelerate launch --use_deepspeed --num_processes 2 train.py",
        ),
        Example("an option of the script", "CUDA_VISIBLE_DEVICES=4,5 deepspeed train.py --num_gpus 2"),
    ),
    sources=(
        Reference(
            "deepspeed 0.16.9, launcher/runner.py main()",
            "with CUDA_VISIBLE_DEVICES set and one of --include/--exclude/--num_gpus/--num_nodes it prints that the "
            "variable is ignored and deletes it; --num_gpus N then takes slots 0 to N-1",
        ),
        Reference(
            "deepspeed 0.9.5, 0.12.6, 0.14.5, 0.15.2, 0.19.5, launcher/runner.py main()",
            "the same; --num_nodes 1 lets the variable become --include and is then refused: "
            '"Cannot specify num_nodes/gpus with include/exclude"',
        ),
        Reference(
            "deepspeed 0.3.10 and 0.5.6, launcher/runner.py main() and launcher/launch.py main()",
            "runner.py does not read the variable, launch.py sets it to the slots, which count from 0",
        ),
        Reference(
            "deepspeed 0.15.2, launcher/runner.py parse_inclusion_exclusion()",
            "from this release on slots named by --include need not lie below the count of devices",
        ),
        Reference(
            "deepspeed 0.19.8, launcher/runner.py main()",
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed --num_gpus 2: the workers receive CUDA_VISIBLE_DEVICES=0,1",
            ran=True,
        ),
    ),
    fix="leave --num_gpus out, or name the GPUs with --include instead of the variable",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Launches through deepspeed whose list of GPUs does not survive it."""
    for launch in case.launches:
        layer = launch.layer("deepspeed")
        variable = reaching(case, launch, VISIBLE)
        if layer is None or variable is None or not _reads_locally(case, launch, layer):
            continue
        old = (
            layer.release is not None and layer.release.certain and not at_least(layer.release.version, READS_VARIABLE)
        )
        finding = _unread(launch, layer, variable) if old else _dropped(case, launch, layer, variable)
        if finding is not None:
            yield finding


def _reads_locally(case: Case, launch: Launch, layer: Layer) -> bool:
    if layer.opaque is not None or layer.option("hostfile") is not None:
        return False
    accelerator = reaching(case, launch, "DS_ACCELERATOR")
    return accelerator is None or accelerator.text == "cuda"


def _unread(launch: Launch, layer: Layer, variable: Variable) -> Finding | None:
    wanted = indices(variable.text or "")
    if wanted is None or layer.release is None:
        return None
    option = layer.option("num_gpus")
    count = option.converted if option is not None and isinstance(option.converted, int) else len(wanted)
    if layer.option("include") or layer.option("exclude") or wanted == tuple(range(count)):
        return None
    return report(
        RULE,
        f"deepspeed {layer.release.version} does not read CUDA_VISIBLE_DEVICES={variable.text}: its workers get "
        f"GPU {listed(range_list(count))} instead of {listed(wanted)}.",
        _place(launch, variable, option),
        subject=VISIBLE,
        evidence=(f"the variable is read from deepspeed {READS_VARIABLE} on",),
        fix=Fix(f"name the GPUs with --include localhost:{_joined(wanted)} on a newer deepspeed, without the variable"),
    )


def _dropped(case: Case, launch: Launch, layer: Layer, variable: Variable) -> Finding | None:
    given = [option for name in FILTERS if (option := layer.option(name)) is not None]
    if not given or variable.text == "":
        return None
    count = layer.option("num_gpus")
    if all(option.dest == "num_nodes" for option in given):
        return _refused(launch, variable, given[0])
    if count is not None and isinstance(count.converted, int):
        return _counted(case, launch, layer, variable, count)
    include = layer.option("include")
    if include is not None:
        return _included(launch, variable, include)
    exclude = layer.option("exclude")
    if exclude is not None:
        return _excluded(case, launch, variable, exclude)
    return None


def _refused(launch: Launch, variable: Variable, option: Option) -> Finding | None:
    if option.converted != 1:
        return None
    fix = None
    if is_typed(launch.command, option):
        fix = Fix(f"leave {option.flag} out", (delete_words(launch.command.source, option.span),), safe=True)
    return report(
        RULE,
        f"deepspeed turns CUDA_VISIBLE_DEVICES={_shown(variable)} into --include and then refuses it together with "
        f"{option.flag} 1.",
        launch.command.locate(option.span),
        evidence=("runner.py: ValueError: Cannot specify num_nodes/gpus with include/exclude",),
        fix=fix,
    )


def _counted(case: Case, launch: Launch, layer: Layer, variable: Variable, option: Option) -> Finding | None:
    count = option.converted
    if not isinstance(count, int) or count < 1:
        return None
    if variable.text is None:
        return report(
            RULE,
            f"deepspeed ignores CUDA_VISIBLE_DEVICES={_shown(variable)} because of {option.flag} {count} and uses "
            f"physical GPU {listed(range_list(count))}.",
            _place(launch, variable, option),
            severity=Severity.WARNING,
            related=(Evidence(f"{option.flag} takes GPUs from 0 on", launch.command.locate(option.span)),),
            fix=Fix(f"leave {option.flag} out: the launcher then takes the GPUs from the variable"),
        )
    wanted = indices(variable.text)
    if wanted is None and any(element.kind in {"uuid", "mig"} for element in elements(variable.text)):
        wanted_text = variable.text
    elif wanted is None or wanted[:count] == tuple(range(count)):
        return None
    else:
        wanted_text = listed(wanted)
    instead = f"physical GPU {listed(range_list(count))}"
    return report(
        RULE,
        f"deepspeed ignores CUDA_VISIBLE_DEVICES={variable.text} because of {option.flag} {count}: the job runs on "
        f"{instead}, not on {wanted_text}.",
        _place(launch, variable, option),
        subject=VISIBLE,
        evidence=("runner.py prints that it ignores the variable because of these options, then deletes it",),
        related=(Evidence(f"{option.flag} takes GPUs from 0 on", launch.command.locate(option.span)),),
        fix=_count_fix(case, launch, layer, variable, option, wanted),
    )


def _count_fix(
    case: Case, launch: Launch, layer: Layer, variable: Variable, option: Option, wanted: tuple[int, ...] | None
) -> Fix | None:
    if wanted is None or not isinstance(option.converted, int) or len(wanted) < option.converted:
        return None
    chosen = wanted[: option.converted]
    source = launch.command.source
    release = layer.release or case.knowledge.release("deepspeed")
    contiguous = release.certain and not at_least(release.version, PHYSICAL_SLOTS)
    typed = is_typed(launch.command, option)
    if chosen == wanted and not contiguous:
        edits = (delete_words(source, option.span),) if typed else ()
        title = f"leave {option.flag} out: the launcher then takes the GPUs from the variable"
        return Fix(title, edits, safe=bool(edits))
    include = f"--include localhost:{_joined(chosen)}"
    edits_list: list[Edit] = [replace(source, option.span, include)] if typed else []
    removed = without_variable(variable)
    if removed is not None and edits_list:
        edits_list.append(removed)
    return Fix(f"name the GPUs with {include} and leave the variable out", tuple(edits_list), safe=False)


def _included(launch: Launch, variable: Variable, option: Option) -> Finding | None:
    slots = _slots(option.value)
    wanted = indices(variable.text or "")
    if slots is None or wanted is None or set(slots) <= set(wanted):
        return None
    message = (
        f"deepspeed ignores CUDA_VISIBLE_DEVICES={variable.text} because of {option.flag}: the slots of "
        f"{option.value} are physical, so the job runs on GPU {listed(slots)}."
    )
    fix = None
    if max(slots) < len(wanted) and is_typed(launch.command, option) and option.values[0].is_literal:
        meant = tuple(wanted[slot] for slot in slots)
        text = f"localhost:{_joined(meant)}"
        edits = [replace(launch.command.source, option.values[0].span, text)]
        removed = without_variable(variable)
        if removed is not None:
            edits.append(removed)
        fix = Fix(f"name the physical GPUs: {option.flag} {text}, without the variable", tuple(edits))
    return report(RULE, message, _place(launch, variable, option), subject=VISIBLE, fix=fix)


def _excluded(case: Case, launch: Launch, variable: Variable, option: Option) -> Finding | None:
    out, wanted, count = _slots(option.value), indices(variable.text or ""), gpu_count(case)
    if out is None or wanted is None or isinstance(count, Unknown):
        return None
    used = tuple(index for index in range(count) if index not in out)
    if not used or set(used) <= set(wanted):
        return None
    return report(
        RULE,
        f"deepspeed ignores CUDA_VISIBLE_DEVICES={variable.text} because of {option.flag}: the job runs on every other "
        f"GPU of the machine, {listed(used)}.",
        _place(launch, variable, option),
        subject=VISIBLE,
        fix=Fix(f"leave {option.flag} out and the GPU out of the variable's list"),
    )


def _slots(filter_text: str | None) -> tuple[int, ...] | None:
    """The slots of a filter for this machine alone (``localhost:0,1``), else None."""
    if filter_text is None or "@" in filter_text or not filter_text.startswith("localhost:"):
        return None
    found = indices(filter_text.removeprefix("localhost:"))
    return None if found is None else tuple(sorted(set(found)))


def _place(launch: Launch, variable: Variable, option: Option | None = None) -> Location:
    """The assignment when it stands in front of the command, else the option that makes it void."""
    if variable.location is not None and variable.scope in {"prefix", "env"}:
        return variable.location
    return launch.command.locate(option.span if option is not None else launch.command.words[0].span)


def _shown(variable: Variable) -> str:
    return variable.value.shown if variable.value is not None else ""


def range_list(count: int) -> tuple[int, ...]:
    """The slots that a count takes."""
    return tuple(range(count))


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)
