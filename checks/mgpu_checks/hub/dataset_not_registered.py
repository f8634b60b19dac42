"""A data set's name is not in LLaMA-Factory's dataset_info.json, or the file is looked for in another directory."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import Given, TrainingArguments, own_config, training_arguments
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
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
    Span,
    closest,
    report,
)

_INFO = "dataset_info.json"
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_SUBCOMMANDS = frozenset({None, "train"})
_YAML = (
    "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: {name}\ntemplate: default\n"
    "output_dir: out\ndataset_dir: {folder}\n"
)
_DATA = {"data/dataset_info.json": '{"demo": {"file_name": "demo.json"}}\n', "data/demo.json": "[]\n"}

RULE = Rule(
    code="MGD405",
    slug="dataset-not-registered",
    title="The data set is not registered",
    severity=Severity.ERROR,
    summary="the name is not in dataset_info.json, or dataset_dir leads to another directory",
    why=(
        "LLaMA-Factory takes data sets by name from `dataset_info.json` in `dataset_dir` (`data` by default), a path "
        "relative to the directory the command runs in, not to the YAML. It looks only after every rank has started: "
        "'Undefined dataset … in dataset_info.json.', 'Cannot open data/dataset_info.json …' or 'File … not found.'"
    ),
    bad=(
        Example(
            "a misspelt name",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": _YAML.format(name="dmeo", folder="data"), **_DATA},
        ),
        Example(
            "run from another directory",
            "cd src && llamafactory-cli train ../sft.yaml",
            files={"sft.yaml": _YAML.format(name="demo", folder="data"), "src/note.txt": "\n", **_DATA},
        ),
        Example(
            "the file that is registered is not there",
            "llamafactory-cli train sft.yaml",
            files={
                "sft.yaml": _YAML.format(name="other", folder="data"),
                "data/dataset_info.json": '{"other": {"file_name": "other.json"}}\n',
            },
        ),
        Example(
            "a register that is not JSON",
            "llamafactory-cli train sft.yaml",
            files={
                "sft.yaml": _YAML.format(name="demo", folder="data"),
                **_DATA,
                "data/dataset_info.json": '{"demo": {"file_name": "demo.json"},}\n',
            },
        ),
    ),
    good=(
        Example(
            "registered and there",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": _YAML.format(name="demo", folder="data"), **_DATA},
        ),
        Example(
            "several, with blanks",
            "llamafactory-cli train sft.yaml",
            files={
                "sft.yaml": _YAML.format(name="demo, hub", folder="data"),
                "data/dataset_info.json": '{"demo": {"file_name": "demo.json"}, "hub": {"hf_hub_url": "a/b"}}\n',
                "data/demo.json": "[]\n",
            },
        ),
        Example(
            "ONLINE: names are hub ids",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": _YAML.format(name="org/set", folder="ONLINE"), **_DATA},
        ),
        Example(
            "a directory that is not known here",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": _YAML.format(name="set", folder="/data/sets")},
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3 to 0.9.5, data/parser.py get_dataset_list()",
            "os.path.join(dataset_dir, 'dataset_info.json') is opened; a name outside it: 'Undefined dataset … in "
            "dataset_info.json.'; ONLINE and REMOTE: are not looked for here",
        ),
        Reference(
            "llamafactory 0.8.3, 0.9.3, 0.9.5, data/loader.py _load_single_dataset()",
            "file_name is joined to dataset_dir; a missing one: 'File … not found.'",
        ),
    ),
    fix="Use a registered name, or set dataset_dir to the folder that holds dataset_info.json",
    signatures=(
        Signature(
            r"Undefined dataset \S+ in dataset_info\.json",
            "llamafactory 0.8.3 to 0.9.5, data/parser.py get_dataset_list()",
            "ValueError: Undefined dataset dmeo in dataset_info.json.",
        ),
        Signature(
            r"Cannot open \S*dataset_info\.json due to",
            "llamafactory 0.8.3 to 0.9.5, data/parser.py get_dataset_list()",
            "ValueError: Cannot open data/dataset_info.json due to [Errno 2] No such file or directory: "
            "'data/dataset_info.json'.",
        ),
        Signature(
            r"ValueError: File \S+ not found\.",
            "llamafactory 0.8.3 to 0.9.5, data/loader.py",
            "ValueError: File data/demo.json not found.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each data set that LLaMA-Factory would not find."""
    for launch in case.launches:
        if launch.target.framework != "llamafactory" or launch.target.subcommand not in _SUBCOMMANDS:
            continue
        given = training_arguments(launch)
        asked = [(argument, name) for argument in _asked(given) for name in _names(argument)]
        folder = given.text("dataset_dir", "data")
        if asked and folder is not None and folder != "ONLINE" and not folder.startswith("REMOTE:"):
            yield from _look(case, launch, given, folder, asked)


def _asked(given: TrainingArguments) -> Iterator[Given]:
    for name in ("dataset", "eval_dataset"):
        argument = given.get(name)
        if argument is not None:
            yield argument


def _names(argument: Given) -> tuple[str, ...]:
    """The names as LLaMA-Factory splits them at commas; none when the value is not known."""
    value = argument.value
    if isinstance(value, list):
        return tuple(str(item).strip() for item in value)
    text = argument.text
    return () if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _look(
    case: Case, launch: Launch, given: TrainingArguments, folder: str, asked: list[tuple[Given, str]]
) -> Iterator[Finding]:
    directory = launch.command.directory
    path = f"{folder.rstrip('/')}/{_INFO}"
    kind = case.workspace.kind(path, directory)
    if kind == "missing":
        sure = _is_here(case, launch, folder)
        if sure or case.mode == "check":
            yield _missing(launch, given, path, Severity.ERROR if sure else Severity.ADVICE)
        return
    if kind != "file":
        return
    info = case.workspace.config(path, "dataset_info", directory)
    if info.problem is not None and info.source is not None and not info.unseen and info.data is None:
        span = info.problem_span or Span(0, min(1, len(info.source.text)))
        message = f"{info.name} is not JSON: {info.problem}: LLaMA-Factory stops with 'Cannot open {info.name}'"
        yield report(RULE, message, Location(info.source, span), fix=Fix("Correct the file"))
        return
    if info.problem is not None or not isinstance(info.data, dict):
        return
    for argument, name in asked:
        if name not in info.data:
            yield _undefined(argument, name, info)
        else:
            yield from _file(case, launch, folder, argument, name, info.data[name])


def _is_here(case: Case, launch: Launch, folder: str) -> bool:
    """Whether the command surely runs in a directory that can be looked at, so that a missing file is missing."""
    config = own_config(launch)
    if config is not None and config.exists is True:
        return True
    if launch.target.kind == "script" and launch.target.exists is True:
        return True
    return case.workspace.kind(folder, launch.command.directory) == "directory"


def _missing(launch: Launch, given: TrainingArguments, path: str, severity: Severity) -> Finding:
    argument = given.get("dataset_dir") or given.get("dataset") or given.get("eval_dataset")
    where = "" if launch.command.directory is None else f" below {launch.command.directory}"
    return report(
        RULE,
        f"{path} does not exist{where}: LLaMA-Factory stops with 'Cannot open {path}'",
        argument.location if argument is not None else launch.command.locate(launch.command.span),
        severity=severity,
        fix=Fix("Run it where the folder lies, or give dataset_dir as an absolute path"),
    )


def _undefined(argument: Given, name: str, info: ConfigFile) -> Finding:
    known = [str(key) for key in info.data] if isinstance(info.data, dict) else []
    similar = closest(name, known)
    text = argument.location.source.slice(argument.location.span)
    at = text.rfind(name)
    others = f", or use one of: {', '.join(known[:5])}" if known else ""
    fix = Fix(f"Register {name} in {info.name}{others}")
    if similar and at >= 0:
        start = argument.location.span.start + at
        fix = Fix(f"Write {similar[0]}", (Edit(argument.location.source, Span(start, start + len(name)), similar[0]),))
    hint = f" (did you mean {similar[0]}?)" if similar else ""
    return report(
        RULE,
        f"{name} is not in {info.name}: 'Undefined dataset {name} in {_INFO}.'{hint}",
        argument.location,
        evidence=[Evidence(f"{info.name} has {len(known)} data sets")],
        fix=fix,
    )


def _file(case: Case, launch: Launch, folder: str, argument: Given, name: str, entry: object) -> Iterator[Finding]:
    if not isinstance(entry, dict) or any(key in entry for key in _ELSEWHERE):
        return
    file = entry.get("file_name")
    if not isinstance(file, str):
        return
    path = file if file.startswith("/") else f"{folder.rstrip('/')}/{file}"
    if case.workspace.kind(path, launch.command.directory) == "missing":
        yield report(
            RULE,
            f"{path}, the file of {name}, does not exist: 'File {path} not found.'",
            argument.location,
            fix=Fix(f"Put the file there, or correct file_name of {name}"),
        )
