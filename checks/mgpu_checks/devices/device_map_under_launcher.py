"""``device_map="auto"`` in a multi-process run: every rank spreads the model over all cards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import on_cpu, program_of, ranks_here
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Signature,
    replace,
    report,
)

_LOAD = (
    "from transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("acme/base", device_map={})\n'
)
_AUTO = _LOAD.format('"auto"')
_LOCAL = "from accelerate import PartialState\n" + _LOAD.format('{"": PartialState().local_process_index}')
_GLOBAL = "from accelerate import PartialState\n" + _LOAD.format('{"": PartialState().process_index}')
_TWO_NODES = (
    "accelerate launch --multi_gpu --num_processes 16 --num_machines 2 --machine_rank 0 "
    "--main_process_ip 10.0.0.5 --main_process_port 29500 sft.py"
)

RULE = Rule(
    code="MGD213",
    slug="device-map-under-launcher",
    title="A device map in a multi-process run",
    severity=Severity.ERROR,
    summary='Each of several ranks places the model with device_map="auto" over every card, or all on the same card.',
    why=(
        '`device_map="auto"` spreads one model over all visible GPUs from one process. Started by a launcher, every '
        "rank does so: N copies compete for the same memory, and training is refused (`You can't train a model that "
        "has been loaded with device_map='auto' in any distributed mode`). A fixed card such as `{'': 0}` puts all "
        "copies on that card. Per rank the map is `{'': local_rank}`; the rank among all machines is right on the "
        "first machine only."
    ),
    bad=(
        Example("automatic placement", "torchrun --nproc_per_node 4 sft.py", files={"sft.py": _AUTO}),
        Example(
            "balanced placement",
            "accelerate launch --multi_gpu --num_processes 2 sft.py",
            files={"sft.py": _LOAD.format('"balanced"')},
        ),
        Example("one card for all", "torchrun --nproc_per_node 2 sft.py", files={"sft.py": _LOAD.format('{"": 0}')}),
        Example("the global rank on two machines", _TWO_NODES, files={"sft.py": _GLOBAL}, facts=None),
        Example("an option of the script", "torchrun --nproc_per_node 4 sft.py --device_map auto", facts=None),
    ),
    good=(
        Example("one process", "python sft.py", files={"sft.py": _AUTO}),
        Example("the rank's own card", "torchrun --nproc_per_node 4 sft.py", files={"sft.py": _LOCAL}),
        Example("the local rank on two machines", _TWO_NODES, files={"sft.py": _LOCAL}),
        Example("the global rank on one machine", "torchrun --nproc_per_node 4 sft.py", files={"sft.py": _GLOBAL}),
        Example("one rank", "accelerate launch --num_processes 1 sft.py", files={"sft.py": _AUTO}),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0, accelerator.py prepare_model()",
            "You can't train a model that has been loaded with `device_map='auto'` in any distributed mode",
        ),
        Reference(
            "transformers 4.52.4, modeling_utils.py from_pretrained()",
            "auto and balanced spread the model over all visible devices of the process",
        ),
    ),
    fix="leave device_map out, or map the whole model to the rank's card: {'': local_rank}",
    signatures=(
        Signature(
            r"can't train a model that has been loaded with `device_map='auto'` in any distributed mode",
            "accelerate 1.7.0 and 1.15.0, accelerator.py prepare_model()",
            "ValueError: You can't train a model that has been loaded with `device_map='auto'` in any distributed "
            "mode. Please rerun your script specifying `--num_processes=1` or by launching with "
            "`python {{myscript.py}}`.",
        ),
        Signature(
            r"You can't train a model that has been loaded in \S+(?: or 4-bit)? precision on (?:a different "
            r"device than|multiple devices in any distributed mode)",
            "accelerate 0.20.3 to 1.15.0, accelerator.py prepare_model()",
            "ValueError: You can't train a model that has been loaded in 8-bit or 4-bit precision on a different "
            "device than the one you're training on. Make sure you loaded the model on the correct device using "
            "for example `device_map={'':torch.cuda.current_device()}`",
        ),
    ),
)

SPREADS = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})


def find(case: Case) -> Iterator[Finding]:
    """Programs and options that place a model over several cards in each of several ranks."""
    for launch in case.launches:
        ranks = ranks_here(launch)
        if ranks is None or ranks < 2 or on_cpu(case, launch):
            continue
        program = program_of(launch)
        if program is not None:
            yield from _in_program(launch, program, ranks)
        argument = launch.target.argument("device_map", "device-map")
        if argument is not None and argument.value in SPREADS and launch.target.framework != "swift":
            yield report(
                RULE,
                f"{argument.flag or argument.name} {argument.value}: each of {ranks} ranks would spread the model over "
                "every visible GPU.",
                launch.command.locate(argument.span),
                fix=Fix(RULE.fix or ""),
            )


def _in_program(launch: Launch, program: Program, ranks: int) -> Iterator[Finding]:
    for seen in program.all("device-map"):
        text = seen.detail
        fixed = re.fullmatch(r"\{\s*(?:''|\"\")\s*:\s*(?:['\"]cuda:)?(\d+)['\"]?\s*\}|cuda:(\d+)", text)
        if text in SPREADS:
            yield _spread(program, seen, ranks)
            return
        if fixed is not None:
            card = fixed.group(1) or fixed.group(2)
            yield report(
                RULE,
                f"device_map={text}: all {ranks} ranks put the whole model on cuda:{card}.",
                program.locate(seen),
                fix=_own_card(program, seen),
            )
            return
    nodes = launch.nodes.known
    wrong = program.first("process-index-as-device")
    if wrong is not None and nodes is not None and nodes > 1:
        yield report(
            RULE,
            f"{program.source.slice(wrong.span) or wrong.detail} is the rank among all {nodes} machines: on the second "
            f"machine it names cuda:{ranks} and more, which do not exist there.",
            program.locate(wrong),
            fix=Fix("use the rank on the machine: local_process_index, or LOCAL_RANK"),
        )


def _spread(program: Program, seen: Seen, ranks: int) -> Finding:
    return report(
        RULE,
        f'device_map="{seen.detail}" in {ranks} ranks: each of them spreads the whole model over every visible GPU, '
        f"{ranks} copies in the same memory.",
        program.locate(seen),
        fix=_own_card(program, seen),
    )


def _own_card(program: Program, seen: Seen) -> Fix:
    title = "map the whole model to the rank's own card"
    if not program.imports_any("os"):
        return Fix(f"{title}: device_map={{'': int(os.environ['LOCAL_RANK'])}}")
    text = '{"": int(os.environ.get("LOCAL_RANK", 0))}'
    return Fix(title, (replace(program.source, seen.span, text),))
