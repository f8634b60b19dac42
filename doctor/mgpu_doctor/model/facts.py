"""What is known about a machine: typed, frozen, each fact a value or the reason why it is not known."""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

SCHEMA_VERSION = 1
"""Version of the JSON form that ``mgpu-doctor facts`` writes."""

NOT_LOOKED = Unknown("no machine was looked at")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as nvidia-smi lists it. ``index`` is nvidia-smi's (PCI bus order); memory in GiB."""

    index: int
    name: str | Unknown = NOT_LOOKED
    uuid: str | Unknown = NOT_LOOKED
    memory_gib: float | Unknown = NOT_LOOKED
    compute_capability: tuple[int, int] | Unknown = NOT_LOOKED
    pci_bus_id: str | Unknown = NOT_LOOKED
    mig: tuple[str, ...] | Unknown = NOT_LOOKED
    """UUIDs of its MIG instances; empty when MIG is off."""
    memory_used_gib: float | Unknown = NOT_LOOKED
    """Memory in use by anybody, the driver's own reserve left out (NVML's memory info, version 2)."""
    mig_mode: bool | Unknown = NOT_LOOKED
    """Whether MIG is on now; a GPU in MIG mode without instances runs nothing."""
    mig_profiles: tuple[str, ...] | Unknown = NOT_LOOKED
    """Profiles of the instances in ``mig``, in its order: ``1g.10gb``."""
    compute_mode: str | Unknown = NOT_LOOKED
    """nvidia-smi's word: ``Default``, ``Exclusive_Process``, ``Prohibited`` (``Exclusive_Thread`` in old drivers)."""
    utilization_percent: int | Unknown = NOT_LOOKED
    """Share of the last sampling period in which a kernel ran."""
    temperature_c: int | Unknown = NOT_LOOKED
    ecc_uncorrected: int | Unknown = NOT_LOOKED
    """Uncorrectable ECC errors since the driver was loaded; Unknown too where the card has no ECC."""
    pages_pending: bool | Unknown = NOT_LOOKED
    """Whether pages or rows wait for a reset to be retired or remapped."""
    remap_failed: bool | Unknown = NOT_LOOKED
    """Whether a row could not be remapped: the card is to be replaced."""
    clock_events: tuple[str, ...] | Unknown = NOT_LOOKED
    """Why clocks are lowered now, in nvidia-smi's words: ``hw_thermal_slowdown``, ``sw_power_cap``, ``gpu_idle`` …"""
    pcie_generation: int | Unknown = NOT_LOOKED
    """Generation of its PCIe link now; an idle card lowers it."""
    pcie_generation_max: int | Unknown = NOT_LOOKED
    pcie_width: int | Unknown = NOT_LOOKED
    """Lanes of its PCIe link now."""
    pcie_width_max: int | Unknown = NOT_LOOKED
    nvlinks: tuple[bool, ...] | Unknown = NOT_LOOKED
    """For each NVLink port whether it is up; empty for a card without NVLink."""
    fabric_state: str | Unknown = NOT_LOOKED
    """How far it has been registered with the NVSwitch fabric: ``not supported``, ``not started``, ``in progress``,
    ``completed``; a failed registration reads ``completed: `` and the error."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU."""

    gpu: int
    pid: int | Unknown
    command: str | Unknown = NOT_LOOKED
    memory_gib: float | Unknown = NOT_LOOKED
    user: str | Unknown = NOT_LOOKED
    """Name of its owner."""
    alive: bool | Unknown = NOT_LOOKED
    """Whether the process still exists (a zombie does not); Unknown where this process cannot see others."""
    parent: int | Unknown = NOT_LOOKED
    """Process id of its parent; 1 for an orphan."""


@dataclass(frozen=True, slots=True)
class XidError:
    """A fault that the driver wrote to the kernel log: ``NVRM: Xid (PCI:0000:3b:00): 79, …``."""

    pci_bus_id: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class PackageCopy:
    """One of several copies of a distribution: its version and the directory that Python would find it in."""

    version: str
    site: str


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Who listens on a TCP port; unknown parts need privileges that we lack."""

    port: int
    pid: int | Unknown = NOT_LOOKED
    command: str | Unknown = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class PythonInfo:
    """The interpreter that the command would use."""

    executable: str | Unknown = NOT_LOOKED
    prefix: str | Unknown = NOT_LOOKED
    version: str | Unknown = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What is known about a path on the machine.

    ``mode`` as ``ls -l`` writes it (``-rw-r--r--``); ``kind`` is ``file``, ``directory`` or ``missing``; ``free_gib``
    what this user may still write there, and ``writable`` whether it may write at all (make it, where it is missing).
    """

    mode: str | Unknown = NOT_LOOKED
    kind: str | Unknown = NOT_LOOKED
    free_gib: float | Unknown = NOT_LOOKED
    writable: bool | Unknown = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model by hub id or path: number of parameters, and its dtype's name."""

    parameters: float | Unknown = NOT_LOOKED
    dtype: str | Unknown = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine that the command is meant for.

    ``origin`` names where the facts come from: ``this machine``, a file's name,
    or ``none``. ``environment`` holds the variables that the launch inherits
    (an allow-list, never secrets); ``packages`` maps normalised distribution names to versions;
    ``ports_in_use`` maps TCP ports to their holders: a port that is absent was not seen in use. ``other`` keeps the
    keys of a plain facts file that have no typed place yet.
    """

    origin: str = "none"
    gpus: tuple[Gpu, ...] | Unknown = NOT_LOOKED
    gpu_processes: tuple[GpuProcess, ...] | Unknown = NOT_LOOKED
    driver: str | Unknown = NOT_LOOKED
    platform: str | Unknown = NOT_LOOKED
    python: PythonInfo = PythonInfo()
    packages: Mapping[str, str] | Unknown = NOT_LOOKED
    package_requirements: Mapping[str, tuple[str, ...]] | Unknown = NOT_LOOKED
    wheels: Mapping[str, str] | Unknown = NOT_LOOKED
    torch_cuda: str | Unknown | None = NOT_LOOKED
    """The CUDA version torch was built for; None for a build without CUDA."""
    environment: Mapping[str, str] | Unknown = NOT_LOOKED
    which: Mapping[str, str | None] | Unknown = NOT_LOOKED
    """Where commands lie on PATH; None for one that is known not to be there, absent for one not looked for."""
    shebangs: Mapping[str, str] | Unknown = NOT_LOOKED
    paths: Mapping[str, PathInfo] | Unknown = NOT_LOOKED
    ports_in_use: Mapping[int, PortHolder] | Unknown = NOT_LOOKED
    interfaces: Mapping[str, str] | Unknown = NOT_LOOKED
    """Network interfaces with their first IPv4 address, or IPv6 address where they have no other; empty without any."""
    reachable: Mapping[str, bool] | Unknown = NOT_LOOKED
    """Whether a host answers: ``{"huggingface.co": False}`` on an offline machine."""
    accelerate_default_config: str | Unknown | None = NOT_LOOKED
    """The text of accelerate's default config file; None when there is none."""
    models: Mapping[str, ModelInfo] | Unknown = NOT_LOOKED
    hub_cache: tuple[str, ...] | Unknown = NOT_LOOKED
    """What the hub's cache holds files of: models as ``org/name``, data sets as ``datasets/org/name``."""
    host_memory_gib: float | Unknown = NOT_LOOKED
    shm_gib: float | Unknown = NOT_LOOKED
    limits: Mapping[str, object] | Unknown = NOT_LOOKED
    """Limits of a process started here, -1 for unlimited: ``memlock_kib``, ``nofile``, ``nproc``, ``stack_kib``, each
    with ``_hard`` behind it for the hard limit; ``cgroup_memory_gib`` and ``cgroup_pids`` where a group sets them."""
    container: str | Unknown | None = NOT_LOOKED
    """The container runtime, None outside any: ``docker``, ``podman``, ``apptainer``, ``containerd`` (Kubernetes),
    ``lxc``, ``systemd-nspawn``. The Windows Subsystem for Linux is none; ``platform`` names it."""
    environment_names: frozenset[str] | Unknown = NOT_LOOKED
    """The names of all variables that are set, those included whose values ``environment`` leaves out."""
    free_ports: tuple[int, ...] = ()
    """TCP ports that were tried and found free, for use in a fix; empty when none was tried."""
    conda: Mapping[str, str] | Unknown = NOT_LOOKED
    """Conda packages: ``{"pytorch": "1.9.0=py3.8_cpu_0"}``."""
    torch_cxx11abi: bool | Unknown = NOT_LOOKED
    """Whether torch was built with the C++11 ABI."""
    nvcc: str | Unknown | None = NOT_LOOKED
    """Version of the CUDA compiler; None when there is none."""
    cuda_home: str | Unknown | None = NOT_LOOKED
    nvswitch: bool | Unknown = NOT_LOOKED
    topology: str | Mapping[str, str] | Unknown = NOT_LOOKED
    """How GPUs are linked, as ``nvidia-smi topo -m`` names it (``SYS``, ``PHB``, ``NV4`` …): one word for all pairs, or
    by pair of indices, the smaller first: ``{"0-1": "NV4"}``."""
    peer_access: Mapping[str, str] | Unknown = NOT_LOOKED
    """Whether GPUs can read each other's memory, by pair of indices: ``ok``, or why not in the words of
    ``nvidia-smi topo -p2p r`` (``chipset not supported``, ``GPU not supported``, ``topology not supported``,
    ``disabled by regkey``, ``not supported``, ``unknown``)."""
    iommu: str | Unknown = NOT_LOOKED
    """``disabled``, ``passthrough`` or ``enabled`` (it translates what devices send)."""
    pci_acs: Mapping[str, str] | Unknown = NOT_LOOKED
    """PCI bridges above GPUs that have access control services: ``{"0000:00:01.1": "enabled"}`` where traffic between
    peers is redirected, otherwise ``disabled``."""
    infiniband: Mapping[str, str] | Unknown = NOT_LOOKED
    """State of the first port of each InfiniBand or RoCE device: ``{"mlx5_0": "ACTIVE"}``; empty without any.
    ``NO DEVICE FILE`` for one that this process cannot open, an empty state where it is not told."""
    services: Mapping[str, str] | Unknown = NOT_LOOKED
    """System services and their state (``active``, ``inactive``, ``failed``, ``not installed``):
    ``{"nvidia-fabricmanager": "failed"}``; absent where it was not looked for, or could not be told."""
    fabric_manager_version: str | Unknown | None = NOT_LOOKED
    site_packages: tuple[str, ...] = ()
    """Directories that hold the interpreter's packages, on this machine; empty for any other."""
    other: Mapping[str, object] | None = None
    nvml_error: str | Unknown | None = NOT_LOOKED
    """Why NVML does not work on a machine that should have it, in NVML's words, with the numbers of the GPUs where it
    is about these alone (``GPU is lost (GPU 3)``); None when it works."""
    driver_module: str | Unknown | None = NOT_LOOKED
    """Version of the loaded kernel module (/proc/driver/nvidia/version); None when none is loaded."""
    driver_cuda: str | Unknown = NOT_LOOKED
    """Newest CUDA version that the driver supports by itself: ``12.4``."""
    device_nodes: tuple[str, ...] | Unknown = NOT_LOOKED
    """The device files of GPUs that this process sees: ``/dev/nvidia0``."""
    xid_errors: tuple[XidError, ...] | Unknown = NOT_LOOKED
    """Faults in the kernel log since the machine was started, oldest first; Unknown without permission to read it."""
    torch_archs: tuple[str, ...] | Unknown = NOT_LOOKED
    """Architectures that torch was built for, in the words of ``torch.cuda.get_arch_list()``: ``sm_80``,
    ``compute_90``."""
    nccl_libraries: Mapping[str, str] | Unknown = NOT_LOOKED
    """Copies of libnccl that torch could load, the one it does load first: path → version, empty where unknown."""
    torch_nccl: str | Unknown | None = NOT_LOOKED
    """NCCL version that the installed torch requires or bundles; None for a build without NCCL."""
    package_copies: Mapping[str, tuple[PackageCopy, ...]] | Unknown = NOT_LOOKED
    """Distributions found in more than one directory of the search path, in its order: the first copy is imported."""
    cpu_count: float | Unknown = NOT_LOOKED
    """Processors that this process may use: affinity and control group taken into account."""
    shm_free_gib: float | Unknown = NOT_LOOKED
    host_memory_free_gib: float | Unknown = NOT_LOOKED
    """Memory that could be had without swapping, in GiB, within the control group's limit."""
    scheduler: str | Unknown | None = NOT_LOOKED
    """Whose job this process is part of: ``slurm``, ``pbs``, ``lsf``, ``kubernetes``; None outside any."""
    hub_cache_path: str | Unknown = NOT_LOOKED
    """Where the hub's cache lies under the variables in force."""
    extension_abis: Mapping[str, bool] | Unknown = NOT_LOOKED
    """Whether installed extensions of torch (``flash-attn``) were built with the C++11 ABI; those that do not tell are
    absent. One that differs from ``torch_cxx11abi`` cannot be loaded."""

    def gpu(self, index: int) -> Gpu | None:
        """The GPU with this nvidia-smi index, None when there is no such or no inventory."""
        if isinstance(self.gpus, Unknown):
            return None
        return next((gpu for gpu in self.gpus if gpu.index == index), None)

    def package_version(self, name: str) -> str | Unknown:
        """The installed version of a distribution; Unknown when the packages are not known or it is absent."""
        if isinstance(self.packages, Unknown):
            return self.packages
        version = self.packages.get(name.lower().replace("_", "-"))
        return version if version is not None else Unknown(f"{name} is not among the known packages")

    def variable(self, name: str) -> str | Unknown | None:
        """An inherited environment variable, None when known to be unset."""
        if isinstance(self.environment, Unknown):
            return self.environment
        return self.environment.get(name)


NO_FACTS = Facts()
