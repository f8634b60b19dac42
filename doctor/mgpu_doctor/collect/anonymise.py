"""Facts without the identity of people and machines, for a bug report: what belonged together still does.

Replaced, each by the same stand-in wherever it stands: user names and so home directories (``user1``), host names and
domains (``host1-07``, ``domain1``), IP addresses (private ones; loopback stays), UUIDs of GPUs (their shape, and which
ones begin alike, stay), what schedulers and trackers call a job, and the words of other processes' commands behind the
program's name. Kept: versions, packages, sizes, names of interfaces and variables, of models and data sets in the
cache, and directories that are not named after a user or a host.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mgpu_doctor.collect.environment import MASK, hide_secrets, masked
from mgpu_doctor.model.facts import Facts, PortHolder
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import replace

_ANYBODY = frozenset(
    """
    root user ubuntu debian centos rocky fedora opc azureuser ec2-user admin administrator nobody jovyan vscode coder
    runner docker node app dev work worker workspace data home tmp opt usr var srv mnt lib bin etc run proc sys shm
    conda miniconda miniconda3 miniforge3 mambaforge anaconda3 venv env envs python python3 torch pytorch nvidia cuda
    accelerate deepspeed transformers huggingface llama llamafactory llama-factory swift vllm ray slurm mpi nccl
    hub cache model models train test tests public shared scratch project projects src code git local share master main
    """.split()  # noqa: SIM905 - a list of words reads better
)
"""Names of accounts and hosts that say nothing of anybody, and words that stand in paths for other reasons."""

_ANY_HOST = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "none", "null", "true", "false"})
_ANY_DOMAIN = frozenset({"com", "org", "net", "edu", "gov", "io", "ai", "local", "internal", "svc", "cluster.local"})
_PUBLIC = ("huggingface.co", "hf.co", "hf-mirror.com", "modelscope.cn", "modelscope.ai", "wandb.ai", "pytorch.org")
_EVERYWHERE = ("255.", "169.254.", "172.17.")
"""Beginnings of addresses that say nothing of a machine: masks, links without a server, Docker's default network.
Those of IPv6 links hold the number of a network card."""
_LONG = 6
"""Letters from which a user's name is replaced inside longer words as well."""

_HOME = re.compile(r"[/\\](?:home|Users)[/\\]([^/\\\s:;,'\"]+)")
_UUID = re.compile(r"\b(GPU|MIG)-(?=[A-Fa-f-]*\d)([0-9A-Fa-f-]{3,})(?![0-9A-Za-z])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_HOST = re.compile(
    r"[A-Za-z][\w+.-]*://"
    r"|(?<=[\w\]])/[^\s,;]*"
    r"|(?<![\w.])(?P<host>\.?[A-Za-z][\w-]*(?:\[[\d,-]+\])?[\w-]*(?:\.[\w-]+)*)"
)
"""The parts of a value that holds hosts: a scheme, a path behind a host, or a host or domain itself."""
_STEM = re.compile(r"(.*?[^\d-])(-?\d+)?")
_IN_CONFIG = re.compile(
    r"(?m)^[ \t]*(?:main_process_ip|rdzv_endpoint|tpu_name|tpu_zone|profile|iam_role_name|image_uri):[ \t]*(.+)$"
)
_HOST_VARIABLE = re.compile(
    r"(?:HOSTS?|HOSTNAME|NODENAME|NODE_?LIST|ADDR|ADDRESS|ENDPOINT|PROXY|URI|URL|SERVER|IP|CLUSTER_NAME)$",
    re.IGNORECASE,
)
_USER_VARIABLES = frozenset({"USER", "LOGNAME", "USERNAME", "SLURM_JOB_USER", "PBS_O_LOGNAME", "LSFUSER"})
_JOB_VARIABLE = re.compile(
    r"^(?:SLURMD?|PBS|LSB|WANDB|OMPI|PMIX|PMI)_|^(?:RDZV_ID|PET_RDZV_ID|TORCHELASTIC_RUN_ID|SWANLAB_\w+|MLFLOW_\w+)$"
)
_LAYOUT = re.compile(
    r"NTASKS|NNODES|NPROCS|NUM_NODES|PROCID|LOCALID|NODEID|TASKS|GPU|CPU|MEM|THREADS|BIND|"
    r"(?:_RANK|_SIZE|MODE|DISABLED|DISTRIBUTION|STEP_ID)$"
)
"""Parts of a scheduler's variables whose values say how a job is laid out, not whose it is."""


def anonymised(facts: Facts, users: Iterable[str] = (), hosts: Iterable[str] = (), key: bytes | None = None) -> Facts:
    """The facts with stand-ins for whatever tells people and machines apart.

    ``users`` and ``hosts`` are further names to be replaced, such as those of whoever asks. ``key`` decides the
    stand-ins of UUIDs; None takes a new one, so that nobody can go back.
    """
    stand_ins = _StandIns(key or secrets.token_bytes(16))
    for name in (*users, *_users(facts)):
        stand_ins.add_user(name)
    for name in (*hosts, *_hosts(facts)):
        stand_ins.add_host(name)
    changes = {name: _treated(stand_ins, name, getattr(facts, name)) for name in facts.__match_args__}
    return replace(facts, **{**changes, "other": None})


class _StandIns:
    """The names to be replaced, and what stands for each."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counted: dict[str, dict[str, int]] = {}
        self._users: dict[str, str] = {}
        self._hosts: dict[str, str] = {}
        self._words: re.Pattern[str] | None = None

    def number(self, kind: str, name: str) -> int:
        """The number of a name among those of its kind, counted from 1."""
        known = self._counted.setdefault(kind, {})
        return known.setdefault(name, len(known) + 1)

    def add_user(self, name: str) -> None:
        """Have a user's name replaced wherever it stands."""
        key = name.lower()
        if len(key) > 1 and key not in _ANYBODY and not key.isdigit() and MASK not in key:
            self._users[key] = f"user{self.number('user', key)}"
            self._words = None

    def add_host(self, name: str) -> None:
        """Have a host's name replaced wherever it stands, with its domain and without, and the domain."""
        key = name.lower()
        bare, _, domain = key.partition(".")
        for written, least in ((key, 3), (bare, 3), (domain, 5)):
            is_common = written in _ANYBODY or written in _ANY_HOST or written in _ANY_DOMAIN or _is_public(key)
            if len(written) >= least and not is_common and "[" not in written:
                self._hosts[written] = self.host(f".{written}")[1:] if written == domain else self.host(written)
        self._words = None

    def host(self, name: str) -> str:
        """What stands for a host or a ``.domain``; numbers at the end of a host's name stay."""
        key = name.lower()
        if key in _ANY_HOST or key.strip(".") in _ANY_DOMAIN or _is_public(key):
            return name
        bare, dot, domain = key.partition(".")
        stood = self._bare_host(bare) if bare else ""
        if not dot:
            return stood
        return f"{stood}.{domain}" if domain in _ANY_DOMAIN else f"{stood}.domain{self.number('domain', domain)}"

    def _bare_host(self, bare: str) -> str:
        head, bracket, rest = bare.partition("[")
        match = _STEM.fullmatch(head.rstrip("-"))
        stem, digits = match.groups() if match else (head, None)
        stood = f"host{self.number('host', stem)}"
        if digits or bracket:
            stood += f"-{(digits or '').lstrip('-')}"
        return stood + bracket + rest

    def address(self, text: str) -> str:
        """What stands for an IP address: a private one of its kind; one that is the same on many machines stays."""
        try:
            found = ipaddress.ip_address(text)
        except ValueError:
            return text
        if found.is_loopback or found.is_unspecified or text.startswith(_EVERYWHERE):
            return text
        count = self.number(f"ip{found.version}", str(found))
        return f"fd00::{count:x}" if found.version == 6 else f"10.{count >> 16 & 255}.{count >> 8 & 255}.{count & 255}"

    def uuid(self, digits: str) -> str:
        """Hexadecimal digits of the same shape; those that begin alike still do, so that short forms keep fitting."""
        out = ""
        before = ""
        for letter in digits.lower():
            if letter != "-":
                mask = hmac.digest(self._key, before.encode(), "sha256")[0] & 15
                before += letter
                letter = f"{int(letter, 16) ^ mask:x}"  # noqa: PLW2901
            out += letter
        return out

    def text(self, text: str, *, addresses: bool = True, hosts: bool = True) -> str:
        """A text with everything in it replaced that is known by its form or its name."""
        text = _UUID.sub(lambda match: f"{match.group(1)}-{self.uuid(match.group(2))}", hide_secrets(text))
        if addresses:
            text = _IPV4.sub(lambda match: self.address(match.group()), text)
            text = _IPV6.sub(lambda match: self.address(match.group()), text)
        if not (self._users or self._hosts):
            return text
        if self._words is None:
            self._words = self._pattern()
        named = {**(self._hosts if hosts else {}), **self._users}
        return self._words.sub(lambda match: named.get(match.group().lower(), match.group()), text)

    def _pattern(self) -> re.Pattern[str]:
        anywhere = [name for name in self._users if len(name) >= _LONG]
        alone = [name for name in (*self._users, *self._hosts) if name not in anywhere]
        parts = []
        if anywhere:
            parts.append(_any_of(anywhere))
        if alone:
            parts.append(rf"(?<![A-Za-z0-9])(?:{_any_of(alone)})(?![A-Za-z0-9])")
        return re.compile("|".join(parts), re.IGNORECASE)

    def hosts_in(self, text: str) -> str:
        """A value that holds hosts, with all of them replaced."""
        return _HOST.sub(lambda match: self.host(match["host"]) if match["host"] else match.group(), text)


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _is_public(name: str) -> bool:
    return name in _PUBLIC or name.endswith(tuple(f".{known}" for known in _PUBLIC))


def _users(facts: Facts) -> Iterable[str]:
    """The user names that the facts tell."""
    for name, value in _variables(facts).items():
        if name in _USER_VARIABLES:
            yield value
        if name == "HOME":
            yield os.path.basename(value.rstrip("/"))
    if not isinstance(facts.gpu_processes, Unknown):
        yield from (process.user for process in facts.gpu_processes if isinstance(process.user, str))
    for text in _texts(facts):
        yield from _HOME.findall(text)


def _hosts(facts: Facts) -> Iterable[str]:
    """The names of hosts that the facts tell."""
    values = [value for name, value in _variables(facts).items() if _HOST_VARIABLE.search(name)]
    if isinstance(facts.accelerate_default_config, str):
        values += _IN_CONFIG.findall(facts.accelerate_default_config)
    for value in values:
        if not _is_path(value):
            yield from (match["host"].strip(".") for match in _HOST.finditer(value) if match["host"])


def _variables(facts: Facts) -> Mapping[str, str]:
    return {} if isinstance(facts.environment, Unknown) else facts.environment


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~/", "./", "../"))


def _texts(value: Any) -> Iterable[str]:
    """Every text in a value, the keys of mappings and the reasons of what is unknown included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts((*value.keys(), *value.values()))
    elif isinstance(value, (tuple, list, frozenset)):
        for item in value:
            yield from _texts(item)
    elif hasattr(value, "__match_args__"):
        yield from _texts(tuple(getattr(value, name) for name in value.__match_args__))


def _treated(stand_ins: _StandIns, name: str, value: Any) -> Any:
    """One fact without what tells people and machines apart."""
    special = _SPECIAL.get(name)
    if special is not None and value is not None and not isinstance(value, Unknown):
        return special(stand_ins, value)
    return _scrubbed(stand_ins, value, addresses=name not in _VERSIONS)


_VERSIONS = frozenset(
    {"gpus", "driver", "driver_module", "driver_cuda", "torch_cuda", "torch_nccl", "nccl_libraries", "nvcc", "platform"}
    | {"fabric_manager_version", "nvml_error"}
)
"""Facts whose numbers with dots are versions: 12.4.5.8 is no address there."""


def _scrubbed(stand_ins: _StandIns, value: Any, *, addresses: bool = True) -> Any:
    """A value of any kind with the texts in it replaced."""
    if isinstance(value, str):
        return stand_ins.text(value, addresses=addresses)
    if isinstance(value, Unknown):
        return Unknown(stand_ins.text(value.reason))

    def again(item: Any) -> Any:
        return _scrubbed(stand_ins, item, addresses=addresses)

    if isinstance(value, Mapping):
        return {again(name): again(item) for name, item in value.items()}
    if isinstance(value, (tuple, frozenset)):
        return type(value)(map(again, value))
    if hasattr(value, "__match_args__"):
        return replace(value, **{name: again(getattr(value, name)) for name in value.__match_args__})
    return value


def _distributions(stand_ins: _StandIns, found: Mapping[str, Any]) -> dict[str, Any]:
    """Distributions keep their names, whatever a user may be called."""
    return {name: _scrubbed(stand_ins, value, addresses=False) for name, value in found.items()}


def _environment(stand_ins: _StandIns, variables: Mapping[str, str]) -> dict[str, str]:
    return {name: _variable(stand_ins, name, masked(name, text)) for name, text in variables.items()}


def _variable(stand_ins: _StandIns, name: str, text: str) -> str:
    if not text or text == MASK:
        return text
    if _HOST_VARIABLE.search(name) and not _is_path(text):
        return stand_ins.text(stand_ins.hosts_in(text), hosts=False)
    is_name = _JOB_VARIABLE.search(name) and not _LAYOUT.search(name) and name not in _USER_VARIABLES
    if is_name and not _is_path(text):
        return str(stand_ins.number("job", text)) if text.isdigit() else f"value{stand_ins.number('value', text)}"
    return stand_ins.text(text)


def _configuration(stand_ins: _StandIns, text: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        return match.group().removesuffix(match.group(1)) + stand_ins.hosts_in(match.group(1))

    return stand_ins.text(_IN_CONFIG.sub(replaced, text))


def _processes(stand_ins: _StandIns, processes: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(_with_program(stand_ins, process) for process in processes)


def _holders(stand_ins: _StandIns, holders: Mapping[int, PortHolder]) -> dict[int, PortHolder]:
    return {port: _with_program(stand_ins, holder) for port, holder in holders.items()}


def _with_program(stand_ins: _StandIns, process: Any) -> Any:
    """A process whose command is cut down to the program's name."""
    command = process.command
    if isinstance(command, str):
        program, blank, _ = command.strip().partition(" ")
        command = stand_ins.text(os.path.basename(program)) + (" …" if blank else "")
    else:
        command = _scrubbed(stand_ins, command)
    return _scrubbed(stand_ins, replace(process, command=command))


_SPECIAL: Mapping[str, Callable[[_StandIns, Any], Any]] = {
    "environment": _environment,
    "gpu_processes": _processes,
    "ports_in_use": _holders,
    "accelerate_default_config": _configuration,
    **dict.fromkeys(
        ("packages", "package_requirements", "package_copies", "wheels", "conda", "extension_abis"), _distributions
    ),
}
"""Facts that are treated by what they mean, not only by what their texts look like."""
