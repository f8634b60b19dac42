"""``mgpu-doctor logs``."""

from __future__ import annotations

from mgpu_doctor.cli.verb import FORMAT, NO_COLOR, SELECTION, Given, Option, Verb


def run(given: Given) -> int:
    """Say why a run failed, from its output."""
    from mgpu_doctor.cli.session import check_names, refuse_unread, show
    from mgpu_doctor.cli.waiting import waiting
    from mgpu_doctor.diagnose_logs import diagnose_logs
    from mgpu_doctor.model.record import replace
    from mgpu_doctor.registry import load_checks
    from mgpu_doctor.settings import load_settings

    registry = load_checks()
    check_names(registry, given.names("select") + given.names("ignore"))
    settings = load_settings(".")
    settings = replace(
        settings,
        select=given.names("select") or settings.select,
        ignore=settings.ignore + given.names("ignore"),
        fail_on=given.text("fail_on") or settings.fail_on,
    )
    smi = given.text("smi")
    with waiting(f"reading {', '.join(given.words)}"):
        report = diagnose_logs(given.words, registry, settings, (smi,) if smi is not None else ())
    if not report.case.logs and not report.case.smi:
        refuse_unread(report)
    show(report, None, given)
    return report.exit_code


VERB = Verb(
    "logs",
    "Find the root cause in the output of a failed run. Ranks that only repeat what another one said are left out. "
    "The start-up lines say whether the run is truly parallel, the text of nvidia-smi whether the GPUs hold its work. "
    "Files of any size are read as a stream; - is standard input.",
    "FILE...",
    (
        FORMAT,
        *SELECTION,
        Option("--smi", "What nvidia-smi showed meanwhile: its table, -q, or csv with a header.", "FILE"),
        NO_COLOR,
    ),
    run,
    (
        "mgpu-doctor logs train.log",
        "mgpu-doctor logs slurm-4127.out slurm-4127.err",
        "nvidia-smi | mgpu-doctor logs train.log --smi -",
        "torchrun --nproc-per-node 8 train.py 2>&1 | tee train.log | mgpu-doctor logs -",
    ),
    least_words=1,
)
