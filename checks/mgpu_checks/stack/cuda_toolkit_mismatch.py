"""DeepSpeed has to compile an operator, and the CUDA compiler does not fit torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.engine import deepspeed_file, trains_with_arguments
from mgpu_checks.stack import numbers, torch_cuda, users, variable, version
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    dataclass,
    is_before,
    report,
)

_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(model, args).train()\n"
)
_FILES = {
    "ft.py": _TRAINER,
    "ds.json": '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
}
_ADAMW = '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}'
_COMMAND = "deepspeed --num_gpus 8 ft.py --deepspeed ds.json"
_CUDA_11 = {"nvcc": "11.5", "cuda_home": "/usr/local/cuda"}

RULE = Rule(
    code="MGD511",
    slug="cuda-toolkit-mismatch",
    title="The CUDA compiler does not fit torch",
    severity=Severity.ERROR,
    summary="DeepSpeed compiles its optimizer at the start, and nvcc is missing or of another CUDA than torch.",
    why=(
        "With an optimizer that is offloaded to the CPU, DeepSpeed compiles `cpu_adam` on first use, and `fused_adam` "
        "where its configuration names the optimizer Adam or AdamW. It takes the "
        "compiler of CUDA_HOME, of PATH or of /usr/local/cuda and compares its version with the CUDA that torch was "
        'built for: other major versions end with "Installed CUDA version 11.5 does not match the version torch was '
        'compiled with 12.4". Without a compiler it stops as well. torch itself needs no toolkit: jobs that compile '
        "nothing run."
    ),
    bad=(
        Example("another major version", _COMMAND, _FILES, _CUDA_11),
        Example("no compiler", _COMMAND, _FILES, {"nvcc": None, "cuda_home": None}),
        Example(
            "a minor version that this DeepSpeed does not know",
            _COMMAND,
            _FILES,
            {
                "nvcc": "12.8",
                "packages": {"torch": "2.4.1+cu121", "deepspeed": "0.14.5", "transformers": "4.45.2"},
                "torch_cuda": "12.1",
            },
        ),
        Example(
            "accelerate's own setting",
            "accelerate launch --config_file acc.yaml ft.py",
            {
                "ft.py": _TRAINER,
                "acc.yaml": "distributed_type: DEEPSPEED\nnum_processes: 8\n"
                "deepspeed_config:\n  zero_stage: 2\n  offload_optimizer_device: cpu\n",
            },
            _CUDA_11,
        ),
        Example(
            "an optimizer of DeepSpeed's own, and no compiler",
            _COMMAND,
            {**_FILES, "ds.json": _ADAMW},
            {"nvcc": None, "cuda_home": None},
        ),
        Example(
            "an old DeepSpeed compares for each operator",
            _COMMAND,
            {**_FILES, "ds.json": _ADAMW},
            {"nvcc": "12.1", "packages": {"torch": "2.0.0+cu118", "deepspeed": "0.9.0"}, "torch_cuda": "11.8"},
        ),
        Example(
            "and so does the offloaded one",
            _COMMAND,
            _FILES,
            {"nvcc": "11.7", "packages": {"torch": "2.1.0+cu121", "deepspeed": "0.12.2"}, "torch_cuda": "12.1"},
        ),
        Example("the machine alone", facts=_CUDA_11),
    ),
    good=(
        Example("the same CUDA", _COMMAND, _FILES, {"nvcc": "12.4"}),
        Example("another minor version", _COMMAND, _FILES, {"nvcc": "12.1"}),
        Example(
            "nothing is compiled",
            _COMMAND,
            {**_FILES, "ds.json": '{"zero_optimization": {"stage": 2}}'},
            _CUDA_11,
        ),
        Example(
            "fused_adam is compiled without a comparison",
            _COMMAND,
            {**_FILES, "ds.json": _ADAMW},
            _CUDA_11,
        ),
        Example(
            "torch's own optimizer",
            _COMMAND,
            {**_FILES, "ds.json": '{"optimizer": {"type": "AdamW", "params": {"torch_adam": true}}}'},
            {"nvcc": None, "cuda_home": None},
        ),
        Example(
            "DeepSpeed goes on without CUDA",
            _COMMAND,
            {**_FILES, "ds.json": _ADAMW},
            {"nvcc": "12.1", "packages": {"torch": "2.0.0+cu118", "deepspeed": "0.9.5"}, "torch_cuda": "11.8"},
        ),
        Example("the check is switched off", f"DS_SKIP_CUDA_CHECK=1 {_COMMAND}", _FILES, _CUDA_11),
        Example(
            "a DeepSpeed that compiles it without CUDA",
            _COMMAND,
            _FILES,
            {**_CUDA_11, "packages": {"torch": "2.13.0+cu126", "deepspeed": "0.19.8"}, "torch_cuda": "12.6"},
        ),
        Example("DeepSpeed is not installed", facts={**_CUDA_11, "packages": {"torch": "2.6.0+cu124"}}),
        Example(
            "conda's DeepSpeed is compiled already", _COMMAND, _FILES, {**_CUDA_11, "conda": {"deepspeed": "0.16.9=0"}}
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.12.6, 0.13.5, 0.14.5, 0.15.4, 0.16.9, 0.17.6 and 0.18.0, op_builder/builder.py "
            "assert_no_cuda_mismatch() and TorchCPUOpBuilder.cxx_args()",
            "cpu_adam compares nvcc with torch.version.cuda and raises CUDAMismatchException; cuda_minor_mismatch_ok "
            "lists what it accepts; DS_SKIP_CUDA_CHECK=1 switches it off",
        ),
        Reference(
            "deepspeed 0.9.1 … 0.12.1 and 0.19.8, op_builder/builder.py",
            "the same operator is compiled without CUDA instead",
        ),
        Reference(
            "deepspeed 0.8.0 … 0.9.0 and 0.12.2, op_builder/builder.py OpBuilder.jit_load()",
            "every operator is compared; the lists of what is accepted end at 11.8, in 0.12.2 at 12.3",
        ),
        Reference(
            "deepspeed 0.16.9, runtime/engine.py _configure_basic_optimizer()",
            "Adam and AdamW of the configuration: FusedAdam, DeepSpeedCPUAdam when offloaded, torch's with torch_adam",
        ),
        Reference(
            "deepspeed 0.12.3 … 0.19.5, op_builder/builder.py jit_load(); torch 2.13.0, utils/cpp_extension.py",
            "fused_adam is compiled without a comparison, but without a compiler CUDA_HOME is not set",
        ),
        Reference(
            "accelerate 1.15.0, accelerator.py _prepare_deepspeed()",
            "an offloaded optimizer is replaced by DeepSpeedCPUAdam",
        ),
    ),
    fix="install the toolkit that torch was built for, or a torch for this toolkit",
    signatures=(
        Signature(
            r"Installed CUDA version \S+ does not match the version torch was compiled with \S+ unable to compile",
            "deepspeed 0.6.7 … 0.19.8, op_builder/builder.py assert_no_cuda_mismatch()",
            "Exception: Installed CUDA version 12.4 does not match the version torch was compiled with 11.8, unable to "
            "compile cuda/cpp extensions without a matching cuda version.",
        ),
        Signature(
            r"CUDA_HOME does not exist, unable to compile CUDA op\(s\)",
            "deepspeed 0.9.5 … 0.19.8, op_builder/builder.py installed_cuda_version()",
            "deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA "
            "op(s)",
        ),
        Signature(
            r"The detected CUDA version \(\S+\) mismatches the version that was used to compile",
            "torch 2.13.0, utils/cpp_extension.py _check_cuda_version()",
            "RuntimeError: ('The detected CUDA version (%s) mismatches the version that was used to compilePyTorch "
            "(%s). Please make sure to use the same CUDA versions.', '11.5', '12.4')",
        ),
        Signature(
            r"'DeepSpeedCPUAdam' object has no attribute 'ds_opt_adam'",
            "deepspeed 0.8.3, ops/adam/cpu_adam.py __del__(), after a failed compilation",
            "AttributeError: 'DeepSpeedCPUAdam' object has no attribute 'ds_opt_adam'",
            weak=True,
        ),
        Signature(
            r"No such file or directory: '\S*/bin/nvcc'|CUDA_HOME environment variable is not set",
            "deepspeed 0.16.9, op_builder/builder.py installed_cuda_version(); torch 1.13.1 to 2.13.0, "
            "utils/cpp_extension.py",
            "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
        ),
        Signature(
            r"Error building extension '\w+'",
            "torch 1.13.1 to 2.13.0, utils/cpp_extension.py _run_ninja_build()",
            "RuntimeError: Error building extension 'cpu_adam'",
            weak=True,
        ),
    ),
)

CHECKED = ((0, 12, 6), (0, 18, 1))
"""Releases of DeepSpeed in which a mismatch stops ``cpu_adam``: since, and up to but without."""

FOR_ALL = (((0, 8, 0), (0, 9, 1)), ((0, 12, 2), (0, 12, 3)))
"""Releases in which a mismatch stops every operator that is compiled: since, and up to but without."""

SILENT = ((0, 9, 1), (0, 12, 2))
"""Releases that compile for the CPU instead when there is no compiler, or one that does not fit."""

NEWEST_ACCEPTED = (((0, 9, 0), (11, 8)), ((0, 12, 6), (12, 3)), ((0, 13, 5), (12, 3)), ((0, 14, 5), (12, 5)),
                   ((0, 15, 4), (12, 6)), ((0, 16, 9), (12, 8)), ((0, 18, 0), (12, 9)))  # fmt: skip
"""Up to a release of DeepSpeed, the newest CUDA 12 that it accepts beside another one; the lists only grow."""


@dataclass(frozen=True, slots=True)
class Work:
    """An operator that DeepSpeed compiles for a job, and what in the text makes it do so."""

    operator: str
    place: Location
    because: str


def find(case: Case) -> Iterator[Finding]:
    """The compiler against torch's CUDA, for jobs that compile, or for an environment with DeepSpeed."""
    found = users(case)
    if not found:
        return
    if found == (None,):
        yield from _machine(case)
        return
    for launch in found:
        work = None if launch is None else _offloaded(case, launch) or _named(case, launch)
        if work is None or launch is None:
            continue
        message = _problem(case, launch, work)
        if message is not None:
            yield report(RULE, message[0], work.place, fix=message[1], alternatives=_ALTERNATIVES[work.operator])
            return


_ALTERNATIVES = {
    "cpu_adam": (Fix("or leave the optimizer on the GPUs (no offload_optimizer)"),),
    "fused_adam": (Fix("or set \"torch_adam\": true in the optimizer's params: torch's own AdamW needs no compiler"),),
}


def _machine(case: Case) -> Iterator[Finding]:
    deepspeed = version(case, "deepspeed")
    cuda, compiler = torch_cuda(case), case.facts.nvcc
    if deepspeed is None or not isinstance(cuda, str) or not isinstance(compiler, str) or _is_built(case, "cpu_adam"):
        return
    if numbers(compiler)[:1] != numbers(cuda)[:1]:
        yield report(
            RULE,
            f"nvcc is of CUDA {compiler}, torch is built for CUDA {cuda}: DeepSpeed {deepspeed} cannot compile "
            "operators here; jobs that need none run.",
            subject=f"nvcc {compiler}",
            severity=Severity.ADVICE,
            fix=_fix(cuda),
        )


def _problem(case: Case, launch: Launch, work: Work) -> tuple[str, Fix] | None:
    """What is wrong with the compiler, None when nothing is or when that cannot be told."""
    deepspeed = version(case, "deepspeed")
    cuda = case.require(torch_cuda(case))
    if deepspeed is None or cuda is None or _is_built(case, work.operator):
        return None
    compares = _compares(deepspeed, work.operator)
    if not compares and not (work.operator == "fused_adam" and is_before(deepspeed, *SILENT[1]) is False):
        return None
    compiler = case.require(case.facts.nvcc)
    does = f"{work.because} makes DeepSpeed {deepspeed} compile {work.operator}"
    if compiler is None:
        lack = "there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda: it stops when the optimizer is made."
        return f"{does}, and {lack}", _fix(cuda)
    accepted = _accepts(deepspeed, numbers(compiler), numbers(cuda))
    if not compares or variable(case, launch, "DS_SKIP_CUDA_CHECK") == "1" or accepted:
        return None
    text = f'"Installed CUDA version {compiler} does not match the version torch was compiled with"'
    return f"{does} with nvcc {compiler}, and torch is built for CUDA {cuda}: it stops with {text}.", _fix(cuda)


def _compares(deepspeed: str, operator: str) -> bool:
    """Whether this release stops where the compiler does not fit."""
    for_all = any(is_before(deepspeed, *since) is False and is_before(deepspeed, *until) for since, until in FOR_ALL)
    if operator == "fused_adam" or for_all:
        return for_all
    return is_before(deepspeed, *CHECKED[0]) is False and is_before(deepspeed, *CHECKED[1]) is True


def _accepts(deepspeed: str, compiler: tuple[int, ...], torch: tuple[int, ...]) -> bool:
    """Whether DeepSpeed compiles with this pair: the same release, or two that it lists as compatible."""
    if compiler[:2] == torch[:2]:
        return True
    if compiler[:1] != torch[:1]:
        return False
    if compiler[0] != 12:
        return compiler[0] < 12
    limit = None
    for release, newest in reversed(NEWEST_ACCEPTED):
        if is_before(deepspeed, *release) or numbers(deepspeed) == release:
            limit = newest
    return limit is None or max(compiler[:2], torch[:2]) <= limit


def _is_built(case: Case, operator: str) -> bool:
    """Whether DeepSpeed's operators come compiled: conda-forge's package, or an installation with DS_BUILD_OPS."""
    if not isinstance(case.facts.conda, Unknown) and "deepspeed" in case.facts.conda:
        return True
    for site in case.facts.site_packages:
        text = case.workspace.read(f"{site}/deepspeed/git_version_info_installed.py", "python")
        if not isinstance(text, Unknown):
            return re.search(rf"'{operator}': True", text.text) is not None
    return False


def _named(case: Case, launch: Launch) -> Work | None:
    """Where DeepSpeed's configuration names Adam, for a trainer that leaves the optimizer to it."""
    config = deepspeed_file(case, launch)
    if config is None or not trains_with_arguments(launch):
        return None
    name, place = config.get("optimizer", "type"), config.locate("optimizer", "type")
    if not isinstance(name, str) or name.lower() not in ("adam", "adamw") or place is None:
        return None
    if config.get("optimizer", "params", "torch_adam") is True:
        return None
    return Work("fused_adam", place, f"The optimizer {name} of its configuration")


def _offloaded(case: Case, launch: Launch) -> Work | None:
    """Where the optimizer is sent to the CPU; None when it is not, or when nothing tells."""
    place = _offloads(case, launch)
    return None if place is None else Work("cpu_adam", place, "The offloaded optimizer")


def _offloads(case: Case, launch: Launch) -> Location | None:
    config = deepspeed_file(case, launch)
    if config is not None:
        return _offloads_in(config, ("zero_optimization", "offload_optimizer", "device"))
    layer = launch.layer("accelerate")
    if layer is None:
        return None
    option = layer.option("offload_optimizer_device")
    if option is not None:
        return launch.command.locate(option.span) if option.value in ("cpu", "nvme") else None
    if layer.config is None:
        return None
    return _offloads_in(layer.config, ("deepspeed_config", "offload_optimizer_device"))


def _offloads_in(config: ConfigFile, path: tuple[str, ...]) -> Location | None:
    return config.locate(*path) if config.get(*path) in ("cpu", "nvme") else None


def _fix(cuda: str) -> Fix:
    return Fix(
        f"install the toolkit of CUDA {cuda} and let CUDA_HOME name it",
        commands=(f"export CUDA_HOME=/usr/local/cuda-{cuda}",),
    )
