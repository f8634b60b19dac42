"""Which GPUs a job really uses: the rules of this family, and how CUDA reads a list of devices.

What CUDA does with ``CUDA_VISIBLE_DEVICES`` was seen by running ``cuInit`` and ``cuDeviceGetCount`` with one
value after another (driver 580.159.04, one H200) and agrees with the CUDA programming guide: elements are
separated by commas; an index is read like C's ``strtoul`` (blanks in front and anything behind the digits are
ignored); an element that is neither an index nor a UUID, an index that the machine lacks, and an element of
the other kind end the list: it and everything behind it are invisible. A device that is named twice makes
``cuInit`` fail, so that no device is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Argument,
    Case,
    Command,
    Edit,
    Launch,
    Location,
    Option,
    Piece,
    Program,
    Seen,
    Span,
    Unknown,
    Variable,
    Word,
    dataclass,
    delete_words,
)

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a list of devices. ``kind``: ``index``, ``uuid``, ``mig``, ``empty`` or ``other``.

    ``rest`` is what stands behind an index's digits and is ignored by CUDA; ``index`` is None for the other kinds.
    """

    text: str
    kind: str
    index: int | None = None
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """A list of physical GPUs that a command, a variable or a configuration file chooses.

    ``name`` says what chooses (``CUDA_VISIBLE_DEVICES``, ``--gpu_ids``); ``location`` is None when it is inherited.
    """

    name: str
    text: str
    launch: Launch
    location: Location | None
    variable: Variable | None = None

    @property
    def subject(self) -> str | None:
        """What to name in a finding without a place."""
        return None if self.location is not None else f"{self.name} in the environment"


def elements(text: str) -> tuple[Element, ...]:
    """The elements of a list as CUDA takes them apart; an empty text has none."""
    return tuple(_element(part) for part in text.split(",")) if text else ()


def _element(part: str) -> Element:
    number = re.match(r"\s*([+-]?\d+)", part)
    if number:
        return Element(part, "index", int(number.group(1)), part[number.end() :])
    lowered = part.lower()
    if lowered.startswith("mig-"):
        return Element(part, "mig")
    if lowered.startswith("gpu-") and len(part) > len("gpu-"):
        return Element(part, "uuid")
    return Element(part, "empty" if not part.strip() else "other")


def kept(found: tuple[Element, ...], count: int | None = None) -> tuple[Element, ...]:
    """The elements that CUDA keeps: those in front of the first that ends the list.

    ``count`` is how many GPUs the machine has, None when that is not known.
    """
    out: list[Element] = []
    for element in found:
        if element.kind in {"empty", "other"} or (out and element.kind != out[0].kind):
            break
        if element.index is not None and (element.index < 0 or (count is not None and element.index >= count)):
            break
        out.append(element)
    return tuple(out)


def indices(text: str) -> tuple[int, ...] | None:
    """The indices of a list that holds nothing but plain indices, else None."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        return None
    return tuple(int(part) for part in text.split(","))


def assignments(case: Case) -> Iterator[Variable]:
    """Every variable that the texts set, each place once, and the list of devices that launches inherit."""
    seen: set[tuple[str, Span] | str] = set()
    groups = [script.assignments for script in case.scripts]
    groups += [command.environment for command in case.commands]
    for group in groups:
        for variable in group:
            at = variable.location
            key: tuple[str, Span] | str = variable.name if at is None else (at.source.name, at.span)
            if key not in seen:
                seen.add(key)
                yield variable
    alone = environment_alone(case, VISIBLE)
    if alone is not None:
        yield _inherited(VISIBLE, alone)
    for launch in case.launches:
        found = reaching(case, launch, VISIBLE)
        if found is not None and found.location is None:
            yield found
            return


def environment_alone(case: Case, name: str) -> str | None:
    """A variable of the environment where there is no launch to judge it by; None when unset, unknown or not asked."""
    value = None if case.launches else case.facts.variable(name)
    return value if isinstance(value, str) else None


def reaching(case: Case, launch: Launch, name: str) -> Variable | None:
    """The variable that reaches the launcher: what the text sets, else what the machine's environment holds."""
    command = launch.command
    if any(variable.name == name for variable in command.environment):
        return command.variable(name)
    inherited = case.facts.environment
    if isinstance(inherited, Unknown) or name not in inherited or command.unset_all or elsewhere(command):
        return None
    return _inherited(name, inherited[name])


def _inherited(name: str, text: str) -> Variable:
    return Variable(name, Word(Span(0, 0), (Piece(text, text),)), "inherited")


def selections(case: Case) -> Iterator[Selection]:
    """What chooses the GPUs of each launch, as far as its text is known: the last that has a say."""
    for launch in case.launches:
        for chosen in (gpu_ids(launch), _from_variable(case, launch)):
            if chosen is not None:
                yield chosen
                break


def _from_variable(case: Case, launch: Launch) -> Selection | None:
    variable = reaching(case, launch, VISIBLE)
    if variable is None or variable.text is None:
        return None
    return Selection(VISIBLE, variable.text, launch, variable.location, variable)


def gpu_ids(launch: Launch) -> Selection | None:
    """The list that accelerate gives its workers, from ``--gpu_ids`` or its configuration file; None for ``all``.

    accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py: any ``gpu_ids`` but ``all`` replaces CUDA_VISIBLE_DEVICES.
    """
    layer = launch.layer("accelerate")
    if layer is None:
        return None
    option = layer.option("gpu_ids")
    if option is not None:
        if option.value is None or option.value == "all":
            return None
        return Selection("--gpu_ids", option.value, launch, launch.command.locate(option.values[0].span))
    value = layer.config.get("gpu_ids") if layer.config is not None else None
    if layer.config is None or not isinstance(value, str) or value == "all":
        return None
    name = f"gpu_ids in {layer.config.name}"
    return Selection(name, value, launch, layer.config.locate("gpu_ids"))


def elsewhere(command: Command) -> bool:
    """Whether the command runs in a container or on another machine, whose GPUs are numbered on their own."""
    return any(
        wrapper.name.split()[0] in {"docker", "podman", "ssh", "nvidia-docker", "kubectl", "apptainer", "singularity"}
        for wrapper in command.wrappers
    )


def gpu_count(case: Case) -> int | Unknown:
    """How many GPUs the machine has."""
    return case.facts.gpus if isinstance(case.facts.gpus, Unknown) else len(case.facts.gpus)


def at_least(version: str | None, wanted: str) -> bool | None:
    """Whether a version is a given release or a later one; None when it is not known."""
    if version is None:
        return None
    return _numbers(version) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    public = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in public.group(0).split(".")) if public else ()


def is_typed(command: Command, option: Option) -> bool:
    """Whether the option stands in the text as it was read, so that an edit of its span touches nothing else."""
    return command.source.slice(option.span).startswith(option.flag)


def without_variable(variable: Variable) -> Edit | None:
    """An edit that removes a prefix assignment; None when it is set further away."""
    if variable.location is None or variable.scope not in {"prefix", "env"}:
        return None
    at = variable.location
    if not at.source.slice(at.span).startswith(variable.name):
        return None
    return delete_words(at.source, at.span)


def value_edit(variable: Variable, text: str) -> Edit | None:
    """An edit that gives a variable another value; None when its value is not written out in one place."""
    at, value = variable.location, variable.value
    if at is None or value is None or not value.is_literal or value.origin is not None:
        return None
    written = at.source.slice(at.span)
    if not written.startswith(variable.name + "="):
        return None
    return Edit(at.source, Span(at.span.start + len(variable.name) + 1, at.span.end), text)


def listed(numbers: tuple[int, ...] | list[int]) -> str:
    """Numbers for people: ``0``, ``0 and 1``, ``0-3``, ``0, 2 and 5``."""
    found = list(numbers)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}"
    texts = [str(number) for number in found]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


SET_UP_BY_LIBRARY = (
    "accelerator",
    "trainer",
    "lightning-trainer",
    "deepspeed-initialize",
    "spawns-ranks",
    "colossalai-launch",
    "run-exp",
)
"""Facts about a program for which a library gives every rank its own device."""


def ranks_here(launch: Launch) -> int | None:
    """How many processes a launcher of ranks starts on one machine; None when unknown or when it is not their work."""
    layers = launch.distributed_layers
    if len(layers) != 1 or layers[0].opaque is not None:
        return None
    return launch.processes_per_node.known


def program_of(launch: Launch) -> Program | None:
    """The program that is launched, when its source could be read."""
    return None if isinstance(launch.target.program, Unknown) else launch.target.program


def set_by_program(program: Program, name: str) -> tuple[Seen, str | None] | None:
    """Where a program sets a variable, with the value when it is a literal; None when it does not."""
    for seen in program.all("sets-variable"):
        found, equals, value = seen.detail.partition("=")
        if found == name:
            return seen, value if equals else None
    return None


def on_cpu(case: Case, launch: Launch) -> bool:
    """Whether the command, its configuration or its list of devices asks for a run on the CPU."""
    layer = launch.layer("accelerate")
    if layer is not None:
        if layer.option("cpu") is not None:
            return True
        config = layer.config
        if config is not None and (config.get("use_cpu") is True or config.get("distributed_type") == "MULTI_CPU"):
            return True
    for name in ("use_cpu", "no_cuda", "cpu"):
        argument = launch.target.argument(name)
        if argument is not None and (argument.value or "true").lower() not in {"false", "0", "no"}:
            return True
    for name in ("device", "backend", "dist_backend", "ddp_backend"):
        argument = launch.target.argument(name)
        if argument is not None and argument.value in {"cpu", "gloo", "mpi", "npu", "xpu", "hpu", "mps"}:
            return True
    hidden = reaching(case, launch, VISIBLE)
    accelerator = reaching(case, launch, "DS_ACCELERATOR") or reaching(case, launch, "ACCELERATE_USE_CPU")
    if accelerator is not None and accelerator.text not in {"cuda", "false", "0", "no"}:
        return True
    return hidden is not None and hidden.text in {"", "-1"}


def uses_cuda(launch: Launch) -> bool | None:
    """Whether the program shows that it needs a GPU; None when it cannot be read or decides by itself."""
    program = program_of(launch)
    if program is None:
        return None
    calls = program.all("cuda-call", "set-device", "cuda-device")
    if any(seen.detail in {"torch.cuda.is_available", "torch.cuda.device_count"} for seen in calls):
        return None
    return True if calls else None


_NAMES_A_DEVICE = frozenset(
    {"gpu", "gpus", "gpu_id", "gpu_ids", "gpu_index", "device", "devices", "device_id", "device_ids", "cuda", "cuda_id"}
)


def device_arguments(launch: Launch) -> Iterator[tuple[Argument, tuple[int, ...]]]:
    """Arguments of the program that number devices inside the visible list.

    ``cuda:N`` does so by itself; a bare number only when the program's source hands it to torch and the program does
    not set CUDA_VISIBLE_DEVICES from it.
    """
    program = program_of(launch)
    for argument in launch.target.arguments:
        if argument.name is None or argument.value is None:
            continue
        named = re.fullmatch(r"cuda:(\d+)", argument.value)
        if named is not None:
            yield argument, (int(named.group(1)),)
            continue
        numbers = indices(argument.value.strip("[]"))
        if numbers is None or program is None or argument.name not in _NAMES_A_DEVICE:
            continue
        if set_by_program(program, VISIBLE) is None and _hands_to_torch(program, argument.name):
            yield argument, numbers


def _hands_to_torch(program: Program, name: str) -> bool:
    where = r"(?:set_device\(|torch\.device\(|\.to\(|\.cuda\(|device_ids\s*=|cuda:\{?)"
    use = rf"{where}[^\n]*\b(?:args|opt|cfg|config)\.{name}\b"
    return re.search(use, program.source.text) is not None
