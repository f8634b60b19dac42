"""Facts of every kind, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mgpu_doctor.model.facts import (
    Facts,
    Gpu,
    GpuProcess,
    ModelInfo,
    PackageCopy,
    PathInfo,
    PortHolder,
    PythonInfo,
    XidError,
)
from mgpu_doctor.model.known import Unknown

REASONS = st.text(min_size=1, max_size=12).map(Unknown)
WORDS = st.text(max_size=8)
NAMES = st.text("abcdefghij0123456789-", min_size=1, max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(0, 2**40)
PAIRS = st.tuples(st.integers(0, 8), st.integers(9, 17)).map(lambda pair: "{}-{}".format(*pair))


def record_of(made: type, /, *given_values: Any, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(made, *given_values, **{name: part | REASONS for name, part in parts.items()})


def tuples_of(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=2).map(tuple)


def map_of(names: st.SearchStrategy[str], items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, items, max_size=2)


GPUS = record_of(
    Gpu,
    st.integers(0, 10**6),
    **dict.fromkeys(("name", "uuid", "pci_bus_id", "fabric_state"), WORDS),
    **dict.fromkeys(("memory_gib", "memory_used_gib"), NUMBERS),
    **dict.fromkeys(("mig", "mig_profiles", "clock_events"), tuples_of(WORDS)),
    **dict.fromkeys(("mig_mode", "pages_pending", "remap_failed"), st.booleans()),
    **dict.fromkeys(("utilization_percent", "temperature_c", "ecc_uncorrected"), WHOLE),
    **dict.fromkeys(("pcie_generation", "pcie_generation_max", "pcie_width", "pcie_width_max"), WHOLE),
    compute_capability=st.tuples(st.integers(1, 99), st.integers(0, 9)),
    compute_mode=st.sampled_from(["Default", "Exclusive_Process", "Prohibited", "another"]),
    nvlinks=tuples_of(st.booleans()),
)
PROCESSES = record_of(
    GpuProcess, WHOLE, pid=WHOLE, command=WORDS, memory_gib=NUMBERS, user=WORDS, alive=st.booleans(), parent=WHOLE
)
HOLDERS = st.builds(PortHolder, st.integers(0, 65535), pid=WHOLE | REASONS, command=WORDS | REASONS)
ANY_FACTS = st.builds(
    Facts,
    python=record_of(PythonInfo, executable=WORDS, prefix=WORDS, version=WORDS),
    free_ports=tuples_of(st.integers(0, 65535)),
    other=st.none() | st.dictionaries(NAMES.map("x-".__add__), WORDS, min_size=1, max_size=2),
    **{
        name: value | REASONS
        for names, value in (
            ("driver driver_cuda platform hub_cache_path", WORDS),
            ("torch_cuda nvcc cuda_home fabric_manager_version accelerate_default_config", st.none() | WORDS),
            ("nvml_error driver_module torch_nccl container", st.none() | WORDS),
            ("scheduler", st.none() | NAMES),
            ("iommu", NAMES),
            ("host_memory_gib host_memory_free_gib shm_gib shm_free_gib cpu_count", NUMBERS),
            ("nvswitch torch_cxx11abi", st.booleans()),
            ("packages wheels", map_of(NAMES, WORDS)),
            ("environment", map_of(NAMES, NAMES)),
            ("conda shebangs pci_acs services interfaces nccl_libraries", map_of(WORDS, WORDS)),
            ("infiniband", map_of(WORDS, st.sampled_from(["ACTIVE", "DOWN", ""]))),
            ("which", map_of(WORDS, st.none() | WORDS)),
            ("extension_abis", map_of(NAMES, st.booleans())),
            ("package_requirements", map_of(NAMES, tuples_of(WORDS))),
            ("package_copies", map_of(NAMES, tuples_of(st.builds(PackageCopy, WORDS, WORDS)))),
            ("peer_access", map_of(PAIRS, WORDS)),
            ("topology", WORDS | map_of(PAIRS, WORDS)),
            ("limits", map_of(WORDS, st.integers(-1))),
            ("reachable", map_of(WORDS, st.booleans())),
            ("hub_cache device_nodes torch_archs", tuples_of(WORDS)),
            ("environment_names", st.frozensets(WORDS, max_size=3)),
            ("xid_errors", tuples_of(st.builds(XidError, WORDS, WHOLE, WORDS))),
            (
                "paths",
                map_of(WORDS, record_of(PathInfo, mode=WORDS, kind=WORDS, free_gib=NUMBERS, writable=st.booleans())),
            ),
            ("models", map_of(WORDS, record_of(ModelInfo, parameters=NUMBERS, dtype=WORDS))),
            ("ports_in_use", st.lists(HOLDERS, max_size=2).map(lambda found: {item.port: item for item in found})),
            ("gpu_processes", tuples_of(PROCESSES)),
            (
                "gpus",
                st.lists(GPUS, max_size=2, unique_by=lambda gpu: gpu.index).map(
                    lambda found: tuple(sorted(found, key=lambda gpu: gpu.index))
                ),
            ),
        )
        for name in names.split()
    },
)
