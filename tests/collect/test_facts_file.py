"""Facts from files: both forms, their round trip, and what is said about bad ones."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from any_facts import ANY_FACTS
from mgpu_doctor.collect import facts_file, facts_values
from mgpu_doctor.collect.facts_file import SILENT, dump_facts, load_facts
from mgpu_doctor.errors import InputError
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

PLAIN = {
    "gpus": [
        {"index": 1, "name": "NVIDIA L4", "memory_gib": 24, "uuid": "GPU-b", "compute_capability": "8.9"},
        {
            "index": 0,
            "name": "NVIDIA L4",
            "memory_gib": 23.5,
            "compute_capability": [8, 9],
            "pci_bus_id": "00000000:3B:00.0",
            "mig_mode": "Enabled",
            "mig_devices": [{"uuid": "MIG-a", "profile": "1g.6gb"}],
            "memory_used_gib": 1,
            "compute_mode": "exclusive-process",
            "utilization_percent": 97,
            "temperature_c": 88,
            "ecc_uncorrected": 2,
            "pages_pending": "Yes",
            "remap_failed": False,
            "clock_events": ["hw_thermal_slowdown"],
            "pcie_generation": 1,
            "pcie_generation_max": 4,
            "pcie_width": 8,
            "pcie_width_max": 16,
            "nvlinks": [True, False],
            "fabric_state": "completed",
            "unknown": {"uuid": "Insufficient Permissions"},
        },
    ],
    "gpu_processes": [
        {"gpu": 0, "pid": 7, "command": "python x.py", "memory_gib": 3, "user": "eve", "alive": True, "parent": 1}
    ],
    "nvml_error": None,
    "driver_module": "550.54.15",
    "driver_cuda": "12.4",
    "device_nodes": ["/dev/nvidia0", "/dev/nvidia1"],
    "xid_errors": [{"pci_bus_id": "0000:3b:00", "code": 79, "text": "GPU has fallen off the bus."}],
    "torch_archs": ["sm_80", "compute_90"],
    "torch_nccl": "2.21.5",
    "nccl_libraries": {"/opt/e/nvidia/nccl/lib/libnccl.so.2": "2.21.5", "/usr/lib/libnccl.so.2": None},
    "package_copies": {"Torch": [{"version": "2.4.1", "site": "/a"}, {"version": "2.3.0", "site": "/b"}]},
    "cpu_count": 7.5,
    "shm_free_gib": 0.03,
    "host_memory_free_gib": 480.5,
    "scheduler": "Slurm",
    "hub_cache_path": "/data/hf/hub",
    "peer_access": {"1-0": "ok"},
    "driver": "550.54.15",
    "platform": "Linux-6.1",
    "python": {"executable": "/opt/e/bin/python", "prefix": "/opt/e", "version": "3.11.4"},
    "container": {"runtime": "docker"},
    "packages": {"Torch": "2.4.1+cu121", "huggingface_hub": "0.30.2", "absent": None},
    "wheels": {"flash_attn": "flash_attn-2.6.3+cu123torch2.4-cp310-cp310-linux_x86_64.whl"},
    "requirements": {"llamafactory": ["transformers<=4.52.4", "numpy<2"]},
    "conda": {"pytorch": "1.9.0=py3.8_cpu_0"},
    "torch_cuda": None,
    "torch_cxx11abi": False,
    "extension_abis": {"flash_attn": True, "xformers": None},
    "nvcc": "12.1",
    "cuda_home": None,
    "env": {"CUDA_VISIBLE_DEVICES": "0,1", "WORLD_SIZE": 4, "GONE": None},
    "which": {"torchrun": "/usr/bin/torchrun", "deepspeed": None},
    "shebangs": {"/usr/bin/torchrun": "#!/usr/bin/python3"},
    "paths": {"/data": {"mode": "drwxr-xr-x", "free_gib": 10, "writable": False}},
    "ports_in_use": {"29500": {"pid": 4127, "command": "python gui.py"}, "8000": None},
    "interfaces": {"lo": "127.0.0.1", "ib0": None},
    "network": {"huggingface.co": False},
    "accelerate_default_config": "distributed_type: 'NO'\n",
    "models": {"acme/base": {"parameters": 7.0e9, "dtype": "bfloat16"}},
    "hub_cache": ["acme/base"],
    "host_memory_gib": 512,
    "shm_gib": 0.0625,
    "limits": {"memlock_kib": "unlimited", "nofile": 1024},
    "nvswitch": True,
    "topology": "SYS",
    "iommu": "enabled",
    "pci_acs": {"0000:00:01.1": "enabled"},
    "infiniband": {"mlx5_0": "active"},
    "services": {"nvidia-fabricmanager": "failed"},
    "fabric_manager_version": "570.124.06",
    "rack": {"row": 3},
}


def write(path: Path, data: object) -> str:
    file = path / "facts.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(file)


def test_plain_form(tmp_path: Path) -> None:
    facts = load_facts(write(tmp_path, PLAIN))
    assert not isinstance(facts.gpus, Unknown)
    assert [gpu.index for gpu in facts.gpus] == [0, 1]
    assert facts.gpus[0].compute_capability == facts.gpus[1].compute_capability == (8, 9)
    assert facts.gpus[1].mig_mode == SILENT
    assert facts.gpus[0].uuid == Unknown("Insufficient Permissions")
    assert (facts.gpus[0].mig, facts.gpus[0].mig_profiles, facts.gpus[0].mig_mode) == (("MIG-a",), ("1g.6gb",), True)
    assert facts.gpus[0].compute_mode == "Exclusive_Process"
    assert facts.gpus[0].nvlinks == (True, False)
    assert facts.gpus[0].pages_pending is True
    assert facts.gpus[0].remap_failed is False
    assert facts.gpu_processes == (GpuProcess(0, 7, "python x.py", 3.0, "eve", alive=True, parent=1),)
    assert facts.nvml_error is None
    assert facts.xid_errors == (XidError("0000:3b:00", 79, "GPU has fallen off the bus."),)
    assert facts.package_copies == {"torch": (PackageCopy("2.4.1", "/a"), PackageCopy("2.3.0", "/b"))}
    assert facts.which == {"torchrun": "/usr/bin/torchrun", "deepspeed": None}
    assert facts.limits == {"memlock_kib": -1, "nofile": 1024}
    assert facts.scheduler == "slurm"
    assert facts.peer_access == {"0-1": "ok"}
    assert facts.infiniband == {"mlx5_0": "ACTIVE"}
    assert facts.nccl_libraries == {"/opt/e/nvidia/nccl/lib/libnccl.so.2": "2.21.5", "/usr/lib/libnccl.so.2": ""}
    assert facts.packages == {"torch": "2.4.1+cu121", "huggingface-hub": "0.30.2"}
    assert facts.package_version("huggingface_hub") == "0.30.2"
    assert facts.torch_cuda is None
    assert facts.cuda_home is None
    assert facts.container == "docker"
    assert facts.environment == {"CUDA_VISIBLE_DEVICES": "0,1", "WORLD_SIZE": "4"}
    assert facts.ports_in_use == {
        29500: PortHolder(29500, 4127, "python gui.py"),
        8000: PortHolder(8000, SILENT, SILENT),
    }
    assert facts.interfaces == {"lo": "127.0.0.1", "ib0": ""}
    assert facts.reachable == {"huggingface.co": False}
    assert facts.extension_abis == {"flash-attn": True}
    assert facts.other == {"rack": {"row": 3}}


def test_what_is_absent_is_unknown(tmp_path: Path) -> None:
    facts = load_facts(write(tmp_path, {}))
    assert facts.gpus == facts.packages == facts.torch_cuda == facts.python.version == SILENT
    assert facts.other is None


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    facts = load_facts(path)
    document = dump_facts(facts)
    assert document["schema"] == 1
    write(tmp_path, document)
    assert load_facts(path) == facts


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [
        ("infiniband", ["mlx5_0", "mlx5_1"], {"mlx5_0": "", "mlx5_1": ""}),
        ("infiniband", {"mlx5_0": "4: ACTIVE", "mlx5_1": None}, {"mlx5_0": "ACTIVE", "mlx5_1": ""}),
        ("infiniband", True, {"unnamed": ""}),
        ("infiniband", False, {}),
        ("iommu", True, "enabled"),
        ("iommu", "Passthrough", "passthrough"),
        ("topology", {"GPU1-GPU0": "NV4", "0-2": "SYS"}, {"0-1": "NV4", "0-2": "SYS"}),
        ("peer_access", {"0-1": False, "2-1": True}, {"0-1": "not supported", "1-2": "ok"}),
        ("nccl_libraries", ["/a/libnccl.so.2"], {"/a/libnccl.so.2": ""}),
        ("nccl_libraries", ["/a/libnccl.so.2.17.1"], {"/a/libnccl.so.2.17.1": "2.17.1"}),
        ("scheduler", None, None),
        ("driver_module", None, None),
        ("torch_nccl", None, None),
        ("cpu_count", None, SILENT),
        ("container", "podman", "podman"),
    ],
)
def test_forms_by_hand(tmp_path: Path, key: str, written: object, read: object) -> None:
    facts = load_facts(write(tmp_path, {key: written}))
    assert getattr(facts, key) == read
    assert load_facts(write(tmp_path, dump_facts(facts))) == facts


def test_instances_of_mig(tmp_path: Path) -> None:
    """``mig`` says more than ``mig_devices`` where both are given; a profile that one lacks is no profile at all."""
    both = {"mig": ["MIG-x"], "mig_devices": [{"uuid": "MIG-a", "profile": "1g.10gb"}]}
    half = {"mig_devices": [{"uuid": "MIG-a", "profile": "1g.10gb"}, {"uuid": "MIG-b"}]}
    facts = load_facts(write(tmp_path, {"gpus": [both, half]}))
    assert not isinstance(facts.gpus, Unknown)
    assert [gpu.mig for gpu in facts.gpus] == [("MIG-x",), ("MIG-a", "MIG-b")]
    assert [gpu.mig_profiles for gpu in facts.gpus] == [("1g.10gb",), SILENT]


def test_compute_capability_by_name(tmp_path: Path) -> None:
    """What the file says of a card goes before what its name tells, and so does that it could not be found out."""
    cards = [
        {"name": "NVIDIA GeForce RTX 5090"},
        {"name": "NVIDIA GeForce RTX 5090", "compute_capability": "8.6"},
        {"name": "NVIDIA GeForce RTX 5090", "unknown": {"compute_capability": "NVML is too old"}},
        {"name": "Quadro P4000"},
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"gpus": cards}))
    gpus = load_facts(str(path)).gpus
    assert not isinstance(gpus, Unknown)
    found = [gpu.compute_capability for gpu in gpus]
    assert found == [(12, 0), (8, 6), Unknown("NVML is too old"), SILENT]


def test_every_fact_has_a_key(tmp_path: Path) -> None:
    """Whatever a record can hold, the file can say."""
    outside = {"origin", "python", "free_ports", "site_packages", "other"}
    assert {name for name, _ in facts_file._KEYS.values()} == {f.name for f in fields(Facts)} - outside
    assert facts_values.GPU_KEYS.keys() == {f.name for f in fields(Gpu)} - {"index"}
    assert facts_values.PROCESS_KEYS.keys() == {f.name for f in fields(GpuProcess)} - {"gpu"}
    for keys, record in (
        (facts_values.PYTHON_KEYS, PythonInfo),
        (facts_values.PATH_KEYS, PathInfo),
        (facts_values.MODEL_KEYS, ModelInfo),
    ):
        assert keys.keys() == {f.name for f in fields(record)}
    assert facts_values.HOLDER_KEYS.keys() == {f.name for f in fields(PortHolder)} - {"port"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(ANY_FACTS)
def test_any_facts_come_back(tmp_path_factory: pytest.TempPathFactory, facts: Facts) -> None:
    path = write(tmp_path_factory.mktemp("facts"), dump_facts(facts))
    assert load_facts(path) == replace(facts, origin=path)


def test_reasons_survive(tmp_path: Path) -> None:
    part = Gpu(0, ecc_uncorrected=Unknown("Not Supported"))
    path = write(tmp_path, dump_facts(Facts(gpus=(part,), driver=Unknown("no driver"))))
    facts = load_facts(path)
    assert facts.driver == Unknown("no driver")
    assert not isinstance(facts.gpus, Unknown)
    assert facts.gpus[0].ecc_uncorrected == Unknown("Not Supported")


def test_secrets_are_masked_when_read_and_when_written(tmp_path: Path) -> None:
    secret = "hf_abcdefghijklmnopqrst"
    env = {"HF_TOKEN": secret, "HTTPS_PROXY": "http://me:pw@proxy:3128", "NOTE": f"x {secret}"}
    facts = load_facts(write(tmp_path, {"env": env}))
    shown = json.dumps(dump_facts(facts)) + repr(facts)
    assert secret not in shown
    assert "me:pw" not in shown
    assert "proxy:3128" in shown


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"gpus": [\n  {"index": 0,}\n]}', ": not JSON: "),
        ("[1, 2]", "JSON object, not a list"),
        ('{"shm_gib": NaN}', "NaN"),
        ({"schema": 2}, "schema 2"),
        ({"gpus": {}}, "gpus must be a list, not an object"),
        ({"gpus": [{"index": "0"}]}, "gpus[0].index must be a whole number, not text"),
        ({"gpus": [{"index": 0, "memory_gib": "80 GiB"}]}, "gpus[0].memory_gib must be a number"),
        ({"gpus": [{"index": 0}, {"index": 0}]}, "same index"),
        ({"gpus": [{"index": 0, "compute_capability": "8"}]}, 'like "8.0"'),
        ({"driver": 550.54}, "driver must be text, not a number"),
        ({"packages": {"torch": 2}}, "packages.torch must be text"),
        ({"env": {"A": ["x"]}}, "env.A must be text, not a list"),
        ({"ports_in_use": {"http": {}}}, "ports_in_use.http: a port is a number"),
        ({"ports_in_use": {"²": {}}}, "a port is a number"),
        ({"ports_in_use": [70000]}, "a port is a number"),
        ({"network": {"hf.co": "no"}}, "network.hf.co must be true or false"),
        ({"shm_gib": True}, "shm_gib must be a number, not true or false"),
        ({"host_memory_gib": 10**400}, "too large a number"),
        ({"gpus": [{"mig_mode": "maybe"}]}, "gpus[0].mig_mode must be true or false"),
        ({"gpus": [{"mig_devices": [{"profile": "1g"}]}]}, "gpus[0].mig_devices[0].uuid must be text, not null"),
        ({"gpus": [{"nvlinks": [1]}]}, "gpus[0].nvlinks[0] must be true or false"),
        ({"gpus": [{"temperature_c": 40.5}]}, "gpus[0].temperature_c must be a whole number"),
        ({"gpus": [{"unknown": {"uuid": 1}}]}, "gpus[0].unknown.uuid must be text"),
        ({"gpu_processes": [{"gpu": 0, "alive": "no"}]}, "gpu_processes[0].alive must be true or false"),
        ({"gpu_processes": [{}]}, "gpu_processes[0].gpu must be a whole number, not null"),
        ({"xid_errors": [{"text": "x"}]}, "xid_errors[0].code must be a whole number"),
        ({"package_copies": {"torch": [{"version": "2"}]}}, "package_copies.torch[0].site must be text"),
        ({"topology": {"all": "SYS"}}, "topology.all: a pair of GPUs"),
        ({"topology": ["SYS"]}, "topology must be text or an object, not a list"),
        ({"infiniband": "mlx5_0"}, "infiniband must be an object"),
        ({"which": {"torchrun": False}}, "which.torchrun must be text"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, data: object, said: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(InputError) as raised:
        load_facts(path)
    assert said in raised.value.message
    assert path in raised.value.message


def test_place_of_bad_json(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_facts(write(tmp_path, '{\n  "gpus": oops\n}'))
    location = raised.value.location
    assert location is not None
    assert location.source.position(location.span.start) == (2, 11)


def test_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    deep = tmp_path / "d.json"
    deep.write_text("[" * 100_000)
    for path, said in (
        (str(tmp_path / "none.json"), "no such file"),
        (str(tmp_path), "directory"),
        (str(binary), "not UTF-8"),
        (str(deep), "nested too deeply"),
        ("a\0b", "no path"),
    ):
        with pytest.raises(InputError) as raised:
            load_facts(path)
        assert said in raised.value.message
    monkeypatch.setattr(facts_file, "LARGEST", 10)
    with pytest.raises(InputError) as raised:
        load_facts(write(tmp_path, {"driver": "550.54.15"}))
    assert "larger" in raised.value.message


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PLAIN)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_document_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = write(tmp_path_factory.mktemp("facts"), data)
    try:
        facts = load_facts(path)
    except InputError:
        return
    Path(path).write_text(json.dumps(dump_facts(facts)), encoding="utf-8")
    assert load_facts(path) == facts
