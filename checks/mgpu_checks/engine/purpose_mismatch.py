"""Batch prediction as one process beside idle GPUs, or one conversation as replicas."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import devices_offered
from mgpu_doctor.authoring import Case, Evidence, Example, Finding, Fix, Launch, Reference, Rule, Severity, report

_PREDICT = (
    "-m llamafactory.launcher --stage sft --do_predict --predict_with_generate --model_name_or_path local/model "
    "--template default --eval_dataset demo --output_dir out"
)

RULE = Rule(
    code="MGD613",
    slug="purpose-mismatch",
    title="The launch does not suit the purpose",
    severity=Severity.WARNING,
    summary="batch prediction in one process although GPUs are free, or a conversation in several",
    why=(
        "Two different things are called multi-GPU inference. Many independent inputs go fastest with one process and "
        "one copy of the model on each GPU; one conversation needs one process, its model spread over the GPUs if it "
        "does not fit on one. Started the other way round, GPUs stay idle, or every replica waits for the same person."
    ),
    bad=(
        Example("prediction in one process, eight GPUs", f"accelerate launch --num_processes 1 {_PREDICT}"),
        Example(
            "prediction in one process of torchrun",
            f"CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --nproc-per-node 1 {_PREDICT}",
        ),
        Example(
            "a conversation in four processes",
            "NPROC_PER_NODE=4 swift infer --model local/model",
            facts={"packages": {"ms-swift": "3.9.0", "torch": "2.6.0"}},
        ),
    ),
    good=(
        Example("one process for each GPU", f"accelerate launch --num_processes 8 {_PREDICT}"),
        Example("one GPU is meant", f"CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node 1 {_PREDICT}"),
        Example(
            "a conversation in one process", "llamafactory-cli chat --model_name_or_path local/model --template default"
        ),
        Example(
            "batch inference in four processes",
            "NPROC_PER_NODE=4 swift infer --model local/model --val_dataset data.jsonl",
            facts={"packages": {"ms-swift": "3.9.0", "torch": "2.6.0"}},
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.3, hparams/parser.py get_train_args()",
            "the model to predict with is placed whole on the rank's own device (device_map = {'': current device})",
        ),
        Reference(
            "ms-swift 3.9.0, llm/infer/infer.py and argument/infer_args.py",
            "without a data set every process reads from the terminal",
        ),
    ),
    fix="Start one process for each GPU for batches, one process for a conversation",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose processes do not suit its purpose."""
    for launch in case.launches:
        purpose, world = launch.purpose, launch.world_size.known
        if purpose.known == "predict" and world == 1:
            yield from _prediction(case, launch)
        elif purpose.known == "chat" and world is not None and world > 1 and launch.layer("swift") is not None:
            yield report(
                RULE,
                f"a conversation is started as {world} processes: each waits for input on the same terminal",
                launch.command.locate(launch.layers[-1].span if not launch.layers[-1].implied else launch.command.span),
                fix=Fix("Start one process: leave NPROC_PER_NODE out"),
            )


def _prediction(case: Case, launch: Launch) -> Iterator[Finding]:
    count = devices_offered(case, launch)
    typed = [layer for layer in launch.distributed_layers if not layer.implied]
    if count is None or count < 2 or not typed or launch.spread.known == "split":
        return
    if launch.engine.known is not None and launch.engine.known.name == "device_map":
        return
    origin = launch.processes_per_node.origin
    yield report(
        RULE,
        f"batch prediction runs in one process on one of {count} visible GPUs: the others do nothing",
        origin.location or launch.command.locate(typed[-1].span),
        related=[Evidence("prediction is asked for", launch.purpose.origin.location)],
        fix=Fix(f"Start {count} processes, or make one GPU visible"),
    )
