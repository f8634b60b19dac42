"""A wrapper joins its arguments by blanks and splits them again: an argument that holds a blank falls apart."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import version_of
from mgpu_doctor.authoring import Case, Evidence, Example, Finding, Fix, Launch, Reference, Rule, Severity, Word, report

_RUN = (
    "llamafactory-cli train --stage sft --do_train --model_name_or_path local/model --dataset demo --template default"
)

RULE = Rule(
    code="MGD119",
    slug="arguments-resplit",
    title="An argument with a blank is split in two",
    severity=Severity.ERROR,
    summary="`llamafactory-cli train` on several GPUs splits every argument at its blanks",
    why=(
        "With more than one visible GPU `llamafactory-cli train` starts torchrun itself. It joins its own arguments by "
        "blanks and splits the result at blanks again, so quotes do not protect anything: a path such as `my "
        "data/c.yaml` "
        "arrives as two arguments. Avoid blanks, put the value into the YAML, or start torchrun yourself."
    ),
    bad=(
        Example(
            "a folder with a blank",
            'llamafactory-cli train "my runs/sft.yaml"',
            files={"my runs/sft.yaml": "model_name_or_path: local/model\nstage: sft\noutput_dir: out\n"},
        ),
        Example("a text as a value", f'{_RUN} --output_dir out --run_name "first try"'),
    ),
    good=(
        Example("no blanks", f"{_RUN} --output_dir out --run_name first-try"),
        Example(
            "one GPU: nothing is started again", f'CUDA_VISIBLE_DEVICES=0 {_RUN} --output_dir out --run_name "a b"'
        ),
        Example(
            "torchrun hands arguments on as they are",
            "torchrun --nproc-per-node 4 -m llamafactory.launcher --stage sft --do_train --model_name_or_path "
            "local/model "
            '--dataset demo --template default --output_dir out --run_name "first try"',
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.1 to 0.9.3 cli.py main(), 0.9.4 and 0.9.5 launcher.py launch()",
            "'torchrun … {args}'.format(args=' '.join(sys.argv[1:])).split()",
        ),
        Reference("llamafactory 0.8.3, 0.9.0, cli.py main()", "the joined text is given to a shell (shell=True)"),
        Reference("llamafactory 0.9.5, llamafactory-cli train 'dir with space/c.yaml'", "split into three", ran=True),
    ),
    fix="Use a name without blanks",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each argument that would be split."""
    for launch in case.launches:
        layer = launch.layer("llamafactory-cli")
        if layer is None or launch.target.subcommand != "train" or not _starts_again(launch):
            continue
        version = version_of(layer.release)
        if version is not None and layer.release is not None and layer.release.certain and version < (0, 8):
            continue
        for word in launch.target.argument_words:
            if _falls_apart(word):
                parts = len(word.shown.split()) or 0
                outcome = f"arrives as {parts} arguments" if parts else "disappears"
                yield report(
                    RULE,
                    f"{word.shown!r} {outcome}: llamafactory-cli joins and splits them at blanks for its torchrun",
                    launch.command.locate(word.span),
                    evidence=[Evidence("llamafactory-cli train starts torchrun on several GPUs", None)],
                    fix=Fix("Use a name without blanks, or start torchrun -m llamafactory.launcher yourself"),
                )


def _starts_again(launch: Launch) -> bool:
    return any(layer.implied for layer in launch.distributed_layers)


def _falls_apart(word: Word) -> bool:
    value = word.value
    if value is None:
        return any(piece.quoted and piece.text is not None and " " in piece.text for piece in word.pieces)
    return not value.strip() or len(value.split()) > 1
