"""The file from which LLaMA-Factory takes its arguments is none that its release can read."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import own_config, version_of
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Evidence,
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
    report,
)

_YAML = (
    "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\ntemplate: default\noutput_dir: out\n"
)
_JSON = (
    '{"model_name_or_path": "local/model", "stage": "sft", "do_train": true, "dataset": "demo",\n'
    ' "template": "default", "output_dir": "out"}\n'
)
_OLD = {"packages": {"llamafactory": "0.9.3", "transformers": "4.52.4", "torch": "2.6.0"}}
_NEW = {"packages": {"llamafactory": "0.9.5", "transformers": "5.6.0", "torch": "2.6.0"}}
_RUN = "llamafactory-cli train sft.yaml"

RULE = Rule(
    code="MGD124",
    slug="arguments-file-invalid",
    title="The file of arguments cannot be read",
    severity=Severity.ERROR,
    summary="the YAML or JSON that holds the program's arguments is not valid, or not of a kind that the release reads",
    why=(
        "LLaMA-Factory reads its arguments from a file only after every rank has loaded torch and transformers, so a "
        "tab in the indentation costs a minute on every GPU. Since 0.9.4 a key that stands twice is refused too; "
        "before, the last one counts. 0.9.5 cannot read JSON at all."
    ),
    bad=(
        Example("a tab", _RUN, files={"sft.yaml": _YAML + "\tbf16: true\n"}),
        Example("a blank too many", _RUN, files={"sft.yaml": _YAML + " bf16: true\n"}),
        Example("a list", _RUN, files={"sft.yaml": "- model_name_or_path: local/model\n"}),
        Example("a comma too many", "llamafactory-cli train sft.json", files={"sft.json": '{"stage": "sft",}\n'}),
        Example("a key twice", _RUN, files={"sft.yaml": _YAML + "stage: dpo\n"}, facts=_NEW),
        Example("the last of two counts", _RUN, files={"sft.yaml": _YAML + "output_dir: other\n"}, facts=_OLD),
        Example("JSON in 0.9.5", "llamafactory-cli train sft.json", files={"sft.json": _JSON}, facts=_NEW),
        Example(
            "the short ending in 0.9.0",
            "llamafactory-cli train sft.yml",
            files={"sft.yml": _YAML},
            facts={"packages": {"llamafactory": "0.9.0", "transformers": "4.45.2", "torch": "2.4.0"}},
        ),
    ),
    good=(
        Example("a valid file", _RUN, files={"sft.yaml": _YAML + "# \tbf16: true\nfp16: true\n"}),
        Example("JSON before 0.9.5", "llamafactory-cli train sft.json", files={"sft.json": _JSON}, facts=_OLD),
        Example("the short ending", "llamafactory-cli train sft.yml", files={"sft.yml": _YAML}),
        Example("the same value twice", _RUN, files={"sft.yaml": _YAML + "output_dir: out\n"}, facts=_OLD),
        Example("a byte-order mark", _RUN, files={"sft.yaml": "\ufeff" + _YAML}),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.3 and 0.9.5, hparams/parser.py read_args(), with each of these files",
            "yaml's ScannerError, 'Cannot merge incompatible container types'; 0.9.5: 'found duplicate key stage'; "
            "AttributeError: 'PosixPath' object has no attribute 'read' for every .json",
            ran=True,
        ),
        Reference(
            "llamafactory 0.8.3 to 0.9.4, hparams/parser.py",
            ".yml is taken since 0.9.1; 0.9.4 and 0.9.5 read YAML with OmegaConf.load(), the others with safe_load()",
        ),
    ),
    fix="Correct the file",
    signatures=(
        Signature(
            r"yaml\.scanner\.ScannerError: |yaml\.parser\.ParserError: |found duplicate key \w+",
            "PyYAML 6.0, scanner.py; omegaconf 2.3, _utils.py (ran)",
            "yaml.scanner.ScannerError: while scanning for the next token",
            weak=True,
        ),
        Signature(
            r"'PosixPath' object has no attribute 'read'",
            "llamafactory 0.9.5, hparams/parser.py read_args() (ran)",
            "AttributeError: 'PosixPath' object has no attribute 'read'",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each file of arguments that its reader refuses."""
    for launch in case.launches:
        config = own_config(launch)
        if config is None or config.exists is not True:
            continue
        if config.unseen:
            case.require(Unknown(config.problem or f"{config.name} cannot be read"))
        finding = _judge(case, launch, config)
        if finding is not None:
            yield finding


def _judge(case: Case, launch: Launch, config: ConfigFile) -> Finding | None:
    release = case.knowledge.release("llamafactory")
    version = version_of(release) if release.certain else None
    kind = "JSON" if config.name.endswith(".json") else "YAML"
    whole = _place(launch, config)
    if config.problem is not None:
        said = config.problem if config.source is None else f"{config.name}: {config.problem}"
        return report(RULE, f"LLaMA-Factory cannot read it as {kind}: {said}", whole, fix=Fix("Correct the file"))
    if kind == "JSON" and version == (0, 9, 5):
        message = f"LLaMA-Factory 0.9.5 stops at every .json with an AttributeError: {config.name} cannot be used"
        return report(RULE, message, whole, fix=Fix("Write the arguments as YAML"))
    if config.name.endswith(".yml") and version is not None and version < (0, 9, 1):
        message = f"LLaMA-Factory {release.version} knows .yaml, not .yml: {config.name} is taken for an argument"
        return report(RULE, message, whole, fix=Fix("Rename it to .yaml"))
    return _repeated(config, version, kind)


def _repeated(config: ConfigFile, version: tuple[int, ...] | None, kind: str) -> Finding | None:
    for before in config.repeated:
        last = config.values[before.path]
        name = before.path[-1]
        if config.source is None:
            continue
        place = Location(config.source, before.key_span)
        related = [Evidence(f"{name} again", Location(config.source, last.key_span))]
        if kind == "YAML" and version is not None and version >= (0, 9, 4):
            message = f"{name} stands twice in {config.name}: 'found duplicate key {name}'"
            return report(RULE, message, place, related=related, fix=Fix(f"Keep one {name}"))
        if before.value != last.value:
            message = f"{name} stands twice in {config.name}: {before.value} is replaced by {last.value}"
            fix = Fix(f"Keep one {name}")
            return report(RULE, message, place, related=related, severity=Severity.WARNING, fix=fix)
    return None


def _place(launch: Launch, config: ConfigFile) -> Location:
    if config.problem_span is not None and config.source is not None:
        return Location(config.source, config.problem_span)
    words = launch.target.argument_words
    return launch.command.locate(words[0].span if words else launch.command.span)
