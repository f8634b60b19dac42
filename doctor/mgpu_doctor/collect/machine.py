"""The facts of this machine: only what is asked for is looked at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mgpu_doctor.collect.environment import relevant
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from mgpu_doctor.collect.interpreter import Interpreter
    from mgpu_doctor.collect.packages import Installed

ORIGIN = "this machine"

UNASKED = Unknown("not looked at: nothing needed it")

LARGEST_CONFIG = 1024 * 1024

ALL = frozenset({"environment", "gpus", "packages", "ports", "interfaces", "accelerate_config", "host", "storage"})
"""Everything that can be asked for."""


def this_machine(needs: frozenset[str] = ALL, python: str | Unknown | None = None, path: str | None = None) -> Facts:
    """What is asked for about this machine; the rest is Unknown.

    ``needs`` are names out of :data:`ALL`; ``packages`` includes the interpreter and the commands on PATH.
    ``python`` is the interpreter whose packages count, or the directory of an environment, or a name on PATH;
    None for the one that a command would use, Unknown where that cannot be told. ``path`` is the PATH that commands are
    found on; without one it is this process's, behind the directory of ``python`` where that is given.

    Raises:
        InputError: there is no such interpreter.
    """
    variables = users_variables()
    if isinstance(python, str):
        python = _named(python, variables.get("PATH"))
        path = path or os.pathsep.join((os.path.dirname(python), variables.get("PATH", os.defpath)))
    searched = variables if path is None else {**variables, "PATH": path}
    values: dict[str, Any] = dict.fromkeys(_FACTS, UNASKED)
    if "environment" in needs:
        # Known at once, and often all that is asked for: not worth a thread.
        values.update(_environment(variables))
    wanted = [part for part in _PARTS if part.need in needs]
    if wanted:
        from mgpu_doctor.collect.attempt import Look, look_at_all

        looks = [Look(part.fields, partial(part.look, searched, python)) for part in wanted]
        for found in look_at_all(looks):
            # Two parts may know the same: what one of them does not know, the other may.
            for name, value in found.items():
                if not isinstance(value, Unknown) or isinstance(values.get(name, UNASKED), Unknown):
                    values[name] = value
    return Facts(origin=ORIGIN, **values)


def users_variables() -> Mapping[str, str]:
    """The environment that this process has inherited, with the user's own PATH."""
    own = os.path.dirname(sys.executable)
    first = os.environ.get("PATH", "").partition(os.pathsep)[0]
    if first != own or os.environ.get("VIRTUAL_ENV") == os.path.dirname(own):
        return os.environ
    from mgpu_doctor.collect.interpreter import path_of_user

    path = path_of_user(os.environ)
    return os.environ if path is None or path == os.environ["PATH"] else {**os.environ, "PATH": path}


def _named(python: str, path: str | None) -> str:
    from mgpu_doctor.collect.interpreter import named_interpreter

    found = named_interpreter(python, path)
    if isinstance(found, Unknown):
        raise InputError(
            f"no interpreter to inspect: {found.reason}",
            hint="give the path of an interpreter, the directory of an environment, or a name on PATH",
        )
    return found


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    return {"environment": relevant(variables), "environment_names": frozenset(variables)}


def _gpus(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect.gpus import inventory

    found = inventory(variables=variables)
    return {
        "gpus": found.gpus,
        "gpu_processes": found.processes,
        "driver": found.driver,
        "nvml_error": found.nvml_error,
        "driver_cuda": found.driver_cuda,
        "topology": found.topology,
        "peer_access": found.peer_access,
        "nvswitch": found.nvswitch,
        "driver_module": found.driver_module,
        "device_nodes": found.device_nodes,
    }


def _kernel_log(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect import driver
    from mgpu_doctor.collect.kernel_log import xid_errors

    return {"xid_errors": xid_errors() if driver.nvidia_seen(variables) else driver.NOTHING_SEEN}


def _packages(variables: Mapping[str, str], python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect.attempt import attempt
    from mgpu_doctor.collect.interpreter import COMMANDS, commands_on_path, find_interpreter, shebangs_of
    from mgpu_doctor.collect.packages import conda_packages, read_packages
    from mgpu_doctor.collect.toolkit import cuda_home, nvcc_version

    places = commands_on_path(variables.get("PATH"))
    found = find_interpreter(python, places, variables)
    installed = read_packages(found)
    home = cuda_home(variables)
    facts = {
        "python": found.python,
        "packages": installed.packages,
        "package_copies": installed.package_copies,
        "package_requirements": installed.package_requirements,
        "extension_abis": installed.extension_abis,
        "wheels": installed.wheels,
        "site_packages": (*found.sites, *found.added),
        "conda": attempt(lambda: conda_packages(found.python.prefix)),
        "which": {**dict.fromkeys(COMMANDS), **places},
        "shebangs": shebangs_of(places.values()),
        "cuda_home": home,
        "nvcc": attempt(lambda: nvcc_version(home)),
        **_torch(found, installed, variables),
    }
    if isinstance(python, Unknown):
        # Where the environment is not known, neither is what lies on its PATH.
        facts.update(dict.fromkeys(("which", "shebangs", "cuda_home", "nvcc"), python))
    return facts


def _torch(found: Interpreter, installed: Installed, variables: Mapping[str, str]) -> dict[str, Any]:
    from mgpu_doctor.collect.attempt import attempt
    from mgpu_doctor.collect.torch_build import TorchBuild, read_torch

    required = installed.package_requirements
    program = found.python.executable
    build = attempt(
        lambda: read_torch(
            (*found.sites, *found.added),
            () if isinstance(required, Unknown) else required.get("torch", ()),
            None if isinstance(program, Unknown) else program,
            variables,
        )
    )
    return {name: build if isinstance(build, Unknown) else getattr(build, name) for name in TorchBuild.__match_args__}


def _ports(_variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect.ports import listening_ports

    return {"ports_in_use": listening_ports()}


def _interfaces(_variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect import network
    from mgpu_doctor.collect.attempt import attempt

    return {"interfaces": attempt(network.interfaces), "infiniband": attempt(network.infiniband)}


def _host(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect import host
    from mgpu_doctor.collect.attempt import attempt
    from mgpu_doctor.collect.cgroup import Allowance, allowance

    allowed = attempt(allowance)
    group = Allowance() if isinstance(allowed, Unknown) else allowed
    shared = attempt(host.shared_memory)
    size, free = (shared, shared) if isinstance(shared, Unknown) else shared
    return {
        "platform": attempt(host.platform),
        "host_memory_gib": attempt(lambda: host.host_memory_gib(group)),
        "host_memory_free_gib": attempt(lambda: host.host_memory_free_gib(group)),
        "cpu_count": attempt(lambda: host.cpu_count(group)),
        "shm_gib": size,
        "shm_free_gib": free,
        "limits": attempt(lambda: host.limits(group)),
        "container": attempt(lambda: host.container(variables)),
        "scheduler": attempt(lambda: host.scheduler(variables)),
    }


def _bus(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect import pci, services
    from mgpu_doctor.collect.attempt import attempt
    from mgpu_doctor.collect.host import container

    switched = attempt(pci.nvswitch)
    found: dict[str, Any] = {
        "nvswitch": switched,
        "iommu": attempt(pci.iommu),
        "pci_acs": attempt(pci.access_control),
        "services": {},
        "fabric_manager_version": Unknown("not looked at: no GPU of this machine could be joined by NVSwitches"),
    }
    if switched is not False:
        runtime = container(variables)
        state = attempt(lambda: services.fabric_manager(runtime))
        found["services"] = state if isinstance(state, Unknown) else {services.FABRIC_MANAGER: state}
        found["fabric_manager_version"] = attempt(lambda: services.fabric_manager_version(runtime))
    return found


def _storage(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    from mgpu_doctor.collect import hub, places
    from mgpu_doctor.collect.attempt import attempt

    return {
        "hub_cache_path": attempt(lambda: hub.cache_path(variables)),
        "hub_cache": attempt(lambda: hub.cached(variables)),
        "paths": attempt(lambda: places.paths(variables)),
    }


def _accelerate_config(variables: Mapping[str, str], _python: str | Unknown | None) -> dict[str, Any]:
    return {"accelerate_default_config": accelerate_default_config(variables)}


def accelerate_default_config(variables: Mapping[str, str]) -> str | Unknown | None:
    """The text of the configuration file that ``accelerate launch`` takes when none is named; None without one.

    accelerate 0.20.3 to 1.15.0, commands/config/config_args.py: ``default_config.yaml`` in ``accelerate`` below
    HF_HOME, or below ``huggingface`` in XDG_CACHE_HOME, or below ``~/.cache/huggingface``.
    """
    cache = variables.get("HF_HOME")
    if cache is None:
        cache = os.path.join(variables.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    path = os.path.join(os.path.expanduser(cache), "accelerate", "default_config.yaml")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        return Unknown(f"{path} cannot be read: {error.strerror}")
    if len(raw) > LARGEST_CONFIG:
        return Unknown(f"{path} is too large for a configuration file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return Unknown(f"{path} is not UTF-8 text")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the machine: what it is asked for by, the facts that it tells, and how it is looked at.

    Where two parts tell the same, the later one of :data:`_PARTS` knows better, unless it does not know.
    """

    need: str
    fields: tuple[str, ...]
    look: Callable[[Mapping[str, str], str | Unknown | None], dict[str, Any]]


_PARTS = (
    _Part("host", ("nvswitch", "iommu", "pci_acs", "services", "fabric_manager_version"), _bus),
    _Part("gpus", ("xid_errors",), _kernel_log),
    _Part(
        "gpus",
        (
            "gpus",
            "gpu_processes",
            "driver",
            "nvml_error",
            "driver_cuda",
            "topology",
            "peer_access",
            "nvswitch",
            "driver_module",
            "device_nodes",
        ),
        _gpus,
    ),
    _Part(
        "packages",
        (
            "packages",
            "package_copies",
            "package_requirements",
            "extension_abis",
            "wheels",
            "conda",
            "which",
            "shebangs",
            "cuda_home",
            "nvcc",
            "torch_cuda",
            "torch_cxx11abi",
            "torch_archs",
            "torch_nccl",
            "nccl_libraries",
        ),
        _packages,
    ),
    _Part("ports", ("ports_in_use",), _ports),
    _Part("interfaces", ("interfaces", "infiniband"), _interfaces),
    _Part("accelerate_config", ("accelerate_default_config",), _accelerate_config),
    _Part(
        "host",
        (
            "platform",
            "host_memory_gib",
            "host_memory_free_gib",
            "cpu_count",
            "shm_gib",
            "shm_free_gib",
            "limits",
            "container",
            "scheduler",
        ),
        _host,
    ),
    _Part("storage", ("hub_cache_path", "hub_cache", "paths"), _storage),
)
_FACTS = tuple(
    name for name in Facts.__match_args__ if name not in {"origin", "python", "free_ports", "site_packages", "other"}
)
