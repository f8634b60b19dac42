"""The job may not or cannot ask the hub, and what it names is neither on disk nor in the hub's cache."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import is_training, training_arguments
from mgpu_checks.hub import (
    DATASETS,
    HOSTS,
    HUB,
    ON,
    SWITCHES,
    Given,
    adapters,
    is_for_transformers,
    is_offline,
    is_offline_machine,
    may_come_from_before,
    models,
    sets_itself,
    uses_other_hub,
    value_of,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    pattern,
    replace,
    report,
)

_TRAIN = "torchrun --nproc_per_node 2 train.py --model_name_or_path org/base-7b"
_FILES = {"train.py": "import torch\n"}
_SFT = "model_name_or_path: org/base-7b\nstage: sft\ndo_train: true\noutput_dir: out\n"

RULE = Rule(
    code="MGD403",
    slug="offline-but-remote",
    title="What is to be loaded is not on this machine, and the hub is out of reach",
    severity=Severity.ERROR,
    summary="Offline mode is on, or there is no network, and a model or data set is a hub id that is not in the cache.",
    why=(
        "In offline mode the libraries take a hub id from the cache alone. What is not there fails in every rank with "
        "\"We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached "
        'files", which sounds like a network problem. The cache has to be filled where there is a network, or the '
        "model named by its folder."
    ),
    bad=(
        Example("offline mode and an empty cache", "HF_HUB_OFFLINE=1 " + _TRAIN, _FILES, {"hub_cache": []}),
        Example(
            "a machine without network",
            _TRAIN,
            _FILES,
            {"hub_cache": ["org/other"], "network": {"huggingface.co": False}},
        ),
        Example(
            "named in LLaMA-Factory's file",
            "HF_HUB_OFFLINE=1 llamafactory-cli train sft.yaml",
            {"sft.yaml": _SFT},
            {"hub_cache": []},
        ),
        Example(
            "a data set that is registered as a repository of the hub",
            "HF_HUB_OFFLINE=1 llamafactory-cli train sft.yaml",
            {
                "sft.yaml": _SFT + "dataset: pairs\n",
                "data/dataset_info.json": '{"pairs": {"hf_hub_url": "org/pairs"}}\n',
            },
            {"hub_cache": ["org/base-7b"]},
        ),
        Example(
            "a script's data set",
            "HF_DATASETS_OFFLINE=1 python train.py --dataset_name org/pairs",
            {"train.py": "import datasets\n"},
            {"hub_cache": []},
        ),
        Example(
            "the adapter",
            "HF_HUB_OFFLINE=1 llamafactory-cli chat --model_name_or_path org/base-7b --adapter_name_or_path org/lora "
            "--template llama3",
            {},
            {"hub_cache": ["org/base-7b"]},
        ),
    ),
    good=(
        Example("it is in the cache", "HF_HUB_OFFLINE=1 " + _TRAIN, _FILES, {"hub_cache": ["org/base-7b"]}),
        Example(
            "the data set is in the cache too",
            "HF_HUB_OFFLINE=1 llamafactory-cli train sft.yaml",
            {
                "sft.yaml": _SFT + "dataset: pairs\n",
                "data/dataset_info.json": '{"pairs": {"hf_hub_url": "org/pairs"}}\n',
            },
            {"hub_cache": ["org/base-7b", "datasets/org/pairs"]},
        ),
        Example(
            "datasets may ask the hub",
            "HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=0 python train.py --dataset_name org/pairs",
            {"train.py": "import datasets\n"},
            {"hub_cache": []},
        ),
        Example(
            "what a script takes for a model is not known",
            "HF_HUB_OFFLINE=1 torchrun train.py --model out/best",
            _FILES,
            {"hub_cache": []},
        ),
        Example("the cache is not known", "HF_HUB_OFFLINE=1 " + _TRAIN, _FILES),
        Example("not offline", _TRAIN, _FILES, {"hub_cache": []}),
        Example(
            "a folder of that name",
            "HF_HUB_OFFLINE=1 " + _TRAIN,
            {**_FILES, "org/base-7b/config.json": "{}"},
            {"hub_cache": []},
        ),
        Example(
            "a mirror within reach",
            "HF_ENDPOINT=http://mirror.lan:8080 " + _TRAIN,
            _FILES,
            {"hub_cache": [], "network": {"huggingface.co": False, "mirror.lan": True}},
        ),
        Example(
            "a mirror of which nothing is known",
            "HF_ENDPOINT=https://mirror.lan " + _TRAIN,
            _FILES,
            {"hub_cache": [], "network": {"huggingface.co": False}},
        ),
        Example(
            "another hub",
            "USE_MODELSCOPE_HUB=1 llamafactory-cli train sft.yaml",
            {"sft.yaml": _SFT},
            {"hub_cache": [], "network": {"huggingface.co": False}},
        ),
        Example(
            "another cache than the one that was looked at",
            "HF_HOME=/data/hf HF_HUB_OFFLINE=1 " + _TRAIN,
            _FILES,
            {"hub_cache": []},
        ),
        Example(
            "fetched by the command above",
            "hf download org/base-7b\nexport HF_HUB_OFFLINE=1\n" + _TRAIN,
            _FILES,
            {"hub_cache": []},
        ),
    ),
    sources=(
        Reference(
            "transformers 4.52.4 with huggingface_hub 0.36.2, transformers 5.6.0 with huggingface_hub 1.33.0",
            "HF_HUB_OFFLINE=1 and an empty cache: OSError: We couldn't connect to 'https://huggingface.co' to load the "
            "files, and couldn't find them in the cached files",
            ran=True,
        ),
        Reference(
            "datasets 3.6.0 and 4.0.0, load_dataset() with HF_HUB_OFFLINE=1 and empty caches",
            "ConnectionError: Couldn't reach 'org/pairs' on the Hub (OfflineModeIsEnabled)",
            ran=True,
        ),
        Reference(
            "llamafactory 0.9.5, data/parser.py get_dataset_list()",
            "hf_hub_url is taken unless ModelScope or OpenMind is asked for",
        ),
        Reference(
            "llamafactory 0.9.3, extras/misc.py try_download_model_from_other_hub()",
            "USE_MODELSCOPE_HUB and USE_OPENMIND_HUB take the model from other hubs",
        ),
        Reference(
            "ms-swift 3.9.0, utils/env.py use_hf_hub()", "models come from ModelScope unless USE_HF or --use_hf says so"
        ),
    ),
    fix="Fill the cache where there is a network, or name the model's folder",
    signatures=(
        Signature(
            r"Cannot reach \S+: offline mode is enabled",
            "huggingface_hub 0.20.3 to 2.4.0, utils/_http.py",
            "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/org/base-7b: "
            "offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable.",
        ),
        Signature(
            r"outgoing traffic has been disabled",
            "huggingface_hub 0.20.3 to 2.4.0, file_download.py and _snapshot_download.py",
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache and "
            "outgoing traffic has been disabled. To enable hf.co look-ups and downloads online, set "
            "'local_files_only' to False.",
        ),
        Signature(
            r"Couldn't reach '.+' on the Hub \(OfflineModeIsEnabled\)",
            "datasets 3.6.0 and 4.0.0, load.py",
            "ConnectionError: Couldn't reach 'org/pairs' on the Hub (OfflineModeIsEnabled)",
        ),
    ),
)

_ID = pattern(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CACHE = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME", "HOME")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_ADDRESS = pattern(r"(?i)https?://(?:[^/@]*@)?([^/:]+)")


def find(case: Case) -> Iterator[Finding]:
    """One finding for each model that an offline job cannot get."""
    if case.mode == "lint":
        return
    unknown: Unknown | None = None
    for launch in case.launches:
        yield from _data_sets(case, launch)
        why = _out_of_reach(case, launch)
        if why is None or sets_itself(launch) or uses_other_hub(case, launch) or _has_own_cache(case, launch):
            continue
        for given in (*models(launch), *adapters(launch)):
            if not _ID.fullmatch(given.text) or not is_for_transformers(launch, given):
                continue
            kind = case.workspace.kind(given.text, launch.command.directory)
            cached = case.facts.hub_cache
            if isinstance(kind, Unknown) or isinstance(cached, Unknown):
                unknown = kind if isinstance(kind, Unknown) else cached if isinstance(cached, Unknown) else None
                continue
            if kind == "missing" and not _is_cached(given.text, cached) and not _comes(case, launch, given):
                yield _report(case, launch, given, why, cached)
    if unknown is not None:
        case.require(unknown)


def _data_sets(case: Case, launch: Launch) -> Iterator[Finding]:
    """Data sets by hub id. datasets keeps what it has prepared in a cache of its own as well, so this is a warning."""
    cached, why = case.facts.hub_cache, _data_out_of_reach(case, launch)
    if isinstance(cached, Unknown) or why is None or uses_other_hub(case, launch) or _has_own_cache(case, launch):
        return
    if sets_itself(launch):
        return
    for given in (*_named_data_sets(launch), *_registered_data_sets(case, launch)):
        known = {entry.lower().removeprefix("datasets/") for entry in cached}
        if not _ID.fullmatch(given.text) or given.text.lower() in known or _comes(case, launch, given):
            continue
        if case.workspace.kind(given.text, launch.command.directory) == "missing":
            yield report(
                RULE,
                f"{why}, and the data set {given.text} is not in the hub's cache: it can be loaded only if datasets "
                "has prepared it here before.",
                given.location,
                subject=given.text,
                severity=Severity.WARNING,
                fix=Fix(
                    "fetch it where there is a network", commands=(f"hf download --repo-type dataset {given.text}",)
                ),
            )


def _data_out_of_reach(case: Case, launch: Launch) -> str | None:
    """Why datasets gets nothing from the hub; its own switch wins over the hub's."""
    own = value_of(case, launch, DATASETS)
    if isinstance(own, Unknown):
        return None
    if own:
        return f"{DATASETS}={own} keeps datasets off the hub" if own.upper() in ON else None
    return _out_of_reach(case, launch)


def _named_data_sets(launch: Launch) -> Iterator[Given]:
    """What the scripts of transformers and trl load by ``--dataset_name``."""
    argument, program = launch.target.argument("dataset_name"), launch.target.program
    loads = launch.target.framework == "trl" or (not isinstance(program, Unknown) and program.imports_any("datasets"))
    if argument is not None and argument.value and loads:
        word = argument.values[0]
        yield Given(argument.value, word.origin or launch.command.locate(word.span), "dataset_name")


def _registered_data_sets(case: Case, launch: Launch) -> Iterator[Given]:
    """The data sets of LLaMA-Factory whose entry in dataset_info.json names a repository of the hub."""
    if not is_training(launch):
        return
    given = training_arguments(launch)
    folder = given.text("dataset_dir", "data")
    if folder is None or folder.startswith(("ONLINE", "REMOTE:")):
        return
    info = case.workspace.config(f"{folder.rstrip('/')}/dataset_info.json", "dataset_info", launch.command.directory)
    for name in ("dataset", "eval_dataset"):
        argument = given.get(name)
        for one in (argument.text or "").split(",") if argument is not None else ():
            repository = info.get(one.strip(), "hf_hub_url")
            if argument is not None and isinstance(repository, str):
                yield Given(repository, argument.location, name)


def _out_of_reach(case: Case, launch: Launch) -> str | None:
    """Why the job gets nothing from the hub; None when it may, or when that is not known."""
    offline = is_offline(case, launch)
    if offline is True:
        name = next(name for name in SWITCHES if value_of(case, launch, name))
        return f"{name}={value_of(case, launch, name)} keeps the job off the hub"
    if isinstance(offline, Unknown) or not is_offline_machine(case):
        return None
    if any(value_of(case, launch, name) is not None for name in _PROXIES):
        return None
    endpoint = value_of(case, launch, "HF_ENDPOINT")
    if endpoint is None or endpoint == "":
        return "the machine cannot reach huggingface.co"
    host = _ADDRESS.match(endpoint) if isinstance(endpoint, str) else None
    reachable = case.facts.reachable
    if host is None or isinstance(reachable, Unknown):
        return None
    name = host.group(1).lower()
    if name in HOSTS or reachable.get(name) is False:
        return f"the machine cannot reach {name}"
    return None


def _has_own_cache(case: Case, launch: Launch) -> bool:
    """Whether the job looks into another cache than the one that the facts list."""
    if launch.target.argument("cache_dir", "download_dir", "local_dir") is not None:
        return True
    if any(config.has("cache_dir") for config in launch.target.configs):
        return True
    program = launch.target.program
    sets = () if isinstance(program, Unknown) else program.all("sets-variable", "defaults-variable")
    if any(seen.detail.partition("=")[0] in _CACHE for seen in sets):
        return True
    for name in _CACHE:
        variable = launch.command.variable(name)
        if variable is not None and variable.scope != "inherited" and variable.text != case.facts.variable(name):
            return True
    return launch.command.unset_all


def _is_cached(model: str, cached: tuple[str, ...]) -> bool:
    wanted = model.lower()
    return any(entry.lower().removeprefix("models/") == wanted for entry in cached)


def _comes(case: Case, launch: Launch, given: Given) -> bool:
    return may_come_from_before(case, launch, given.text)


def _report(case: Case, launch: Launch, given: Given, why: str, cached: tuple[str, ...]) -> Finding:
    model = given.text
    others = [entry for entry in cached if entry.rpartition("/")[2].lower() == model.rpartition("/")[2].lower()]
    count = sum(not entry.startswith("datasets/") for entry in cached)
    evidence = [f"the hub's cache holds {count} models" + (f", among them {others[0]}" if others else "")]
    path = case.facts.hub_cache_path
    if isinstance(path, str):
        evidence.append(f"the cache is {path}")
    fetch = Fix(
        "fetch it where there is a network, and copy the cache or name the folder",
        commands=(f"hf download {model}",),
    )
    variable = launch.command.variable(HUB)
    online: tuple[Fix, ...] = ()
    if not is_offline_machine(case) and variable is not None and variable.location is not None:
        at = variable.location
        if at.source.slice(at.span).startswith(f"{HUB}="):
            online = (Fix("let this run ask the hub", (replace(at.source, at.span, f"{HUB}=0"),)),)
    return report(
        RULE,
        f"{why}, and {model} is a hub id that is neither a folder here nor in the hub's cache: it cannot be loaded.",
        given.location,
        subject=model,
        evidence=evidence,
        fix=fetch,
        alternatives=online,
    )
