"""Anonymised facts: nothing of anybody survives, and everything that belonged together still does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mgpu_checks import CHECKS
from mgpu_doctor.authoring import AnyCheck, Example
from mgpu_doctor.collect.anonymise import anonymised
from mgpu_doctor.collect.environment import MASK, hide_secrets, masked
from mgpu_doctor.collect.facts_file import dump_facts, load_facts
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.registry import Registry
from mgpu_doctor.testing import standard_facts

KEY = b"0123456789abcdef"
UUIDS = [f"GPU-5b7e5d{index}e-93c4-a4ab-0f1d-2e8c7c1f9f{index}0" for index in range(2)]
MIG = "MIG-7e5d5be1-93c4-5a4b-8f1d-2e8c7c1f9f11"

PRIVATE: dict[str, Any] = {
    "gpus": [
        {"name": "NVIDIA A100", "uuid": UUIDS[0], "mig": [MIG], "pci_bus_id": "00000000:3B:00.0"},
        {"name": "NVIDIA A100", "uuid": UUIDS[1], "unknown": {"mig": "/home/mara.quist/x cannot be read"}},
    ],
    "gpu_processes": [
        {"gpu": 0, "pid": 1, "command": "/home/zoltan/env/bin/python secret_plan.py --to 10.1.2.3", "user": "zoltan"},
        {"gpu": 1, "pid": 2, "command": "Xorg", "user": "root"},
    ],
    "driver": "550.54.15",
    "python": {"executable": "/home/mara.quist/envs/lf/bin/python", "prefix": "/home/mara.quist/envs/lf"},
    "packages": {"torch": "2.4.1+cu121", "nvidia-cublas-cu12": "12.4.5.8"},
    "package_copies": {"torch": [{"version": "2.4.1", "site": "/home/mara.quist/.local/lib"}]},
    "wheels": {"torch": "torch-2.4.1-cp310-cp310-linux_x86_64.whl"},
    "nccl_libraries": {"/home/mara.quist/lib/libnccl.so.2": "2.21.5"},
    "env": {
        "HOME": "/home/mara.quist",
        "USER": "mara.quist",
        "LOGNAME": "mara.quist",
        "PATH": "/home/mara.quist/envs/lf/bin:/usr/bin",
        "PWD": "/scratch/mara.quist-7/proj",
        "HOSTNAME": "vexor17.hpc.umbrella-labs.example",
        "MASTER_ADDR": "vexor17",
        "PET_RDZV_ENDPOINT": "vexor17.hpc.umbrella-labs.example:29400",
        "NCCL_SOCKET_IFNAME": "eth0",
        "CUDA_VISIBLE_DEVICES": f"{UUIDS[1]},{UUIDS[0][:12]}",
        "HF_TOKEN": "hf_qwertyuiopasdfgh",
        "HF_ENDPOINT": "https://mirror.umbrella-labs.example/hf",
        "HTTPS_PROXY": "http://mara:p@ss/w,rd@squid.umbrella-labs.example:3128",
        "http_proxy": "mara:hunter2@squid.umbrella-labs.example:3128",
        "NO_PROXY": "localhost,127.0.0.1,.umbrella-labs.example,192.168.7.9",
        "SLURM_JOB_ID": "8812345",
        "SLURM_JOB_NAME": "merger-forecast",
        "SLURM_JOB_ACCOUNT": "umbrella-ceo",
        "SLURM_JOB_PARTITION": "boardroom",
        "SLURM_JOB_NODELIST": "vexor[17-18],oryx3",
        "SLURM_JOB_USER": "mara.quist",
        "SLURM_NTASKS": "16",
        "SLURM_JOB_GPUS": "0,1",
        "SLURM_SUBMIT_DIR": "/home/mara.quist/merge",
        "SLURM_LAUNCH_NODE_IPADDR": "10.77.3.4",
        "WANDB_PROJECT": "merger-llm",
        "WANDB_MODE": "offline",
        "TORCHELASTIC_RUN_ID": "mara-run-55",
    },
    "env_names": ["HOME", "HF_TOKEN"],
    "which": {"torchrun": "/home/mara.quist/envs/lf/bin/torchrun", "srun": None},
    "shebangs": {"/home/mara.quist/envs/lf/bin/torchrun": "#!/home/mara.quist/envs/lf/bin/python"},
    "paths": {"/home/mara.quist/proj": {"mode": "drwx------"}, "/scratch/Mara.Quist": None},
    "ports_in_use": {"29500": {"pid": 7, "command": "python -m http --token abcdef123456 10.9.8.7"}},
    "interfaces": {"lo": "127.0.0.1", "eth0": "10.77.3.4", "eth1": "8.8.4.4", "ib0": "2001:db8::77"},
    "network": {"vexor17": True},
    "accelerate_default_config": "main_process_ip: vexor18\nhub_token: hf_zzzzzzzzzzzzzz\nnum_machines: 2\n",
    "hub_cache_path": "/home/mara.quist/.cache/huggingface/hub",
    "hub_cache": ["mara.quist/private-base", "Qwen/Qwen2.5-7B"],
    "device_nodes": ["/dev/nvidia0"],
    "unknown": {"services": "vexor17 would not tell zoltan"},
    "anything": {"else": "Mara Quist, room 101"},
}
SECRETS = (
    "mara|quist|zoltan|secret_plan|umbrella|vexor|oryx|squid|mirror|hf_qwerty|hf_zzz|p@ss|w,rd|hunter2|8812345|merger"
    "|boardroom|10\\.77\\.|10\\.1\\.2\\.3|10\\.9\\.8\\.7|192\\.168\\.7|8\\.8\\.4\\.4|2001:db8|5b7e5d|7e5d5be1"
    "|abcdef123456|room 101"
)


def load(path: Path, data: dict[str, Any]) -> Facts:
    path.write_text(json.dumps(data), encoding="utf-8")
    return load_facts(str(path))


@pytest.fixture
def private(tmp_path: Path) -> Facts:
    return load(tmp_path / "facts.json", PRIVATE)


def test_nothing_of_anybody_survives(private: Facts) -> None:
    text = json.dumps(dump_facts(anonymised(private, key=KEY)), ensure_ascii=False)
    assert re.findall(SECRETS, text, re.IGNORECASE) == []


def test_planted_in_every_place(tmp_path: Path) -> None:
    """A name, a host, an address and a UUID in each text of the facts, whatever it is for."""
    planted = f"/home/quillon/x node-zebrafish4 10.20.30.40 {UUIDS[0]} hf_abcdefghijklmnop"

    def plant(value: Any) -> Any:
        if isinstance(value, str):
            return f"{value} {planted}"
        if isinstance(value, dict):
            return {name: plant(item) for name, item in value.items()}
        return [plant(item) for item in value] if isinstance(value, list) else value

    dull = {"env", "gpus", "driver", "packages", "package_copies", "wheels", "nccl_libraries", "anything"}
    keys = PRIVATE.keys() - dull
    facts = load(tmp_path / "f.json", {key: plant(PRIVATE[key]) for key in keys} | {"env": plant(PRIVATE["env"])})
    text = json.dumps(dump_facts(anonymised(facts, hosts=["node-zebrafish4"], key=KEY)))
    assert re.findall(r"quillon|zebrafish|hf_abcd|5b7e5d|10\.20\.30\.40", text) == []


def test_what_belonged_together_still_does(private: Facts) -> None:
    facts = anonymised(private, key=KEY)
    assert not isinstance(facts.environment, Unknown)
    assert not isinstance(facts.gpus, Unknown)
    env = facts.environment
    assert env["HOME"] == "/home/user1"
    assert env["USER"] == env["SLURM_JOB_USER"] == "user1"
    assert facts.python.prefix == "/home/user1/envs/lf"
    assert env["PATH"] == "/home/user1/envs/lf/bin:/usr/bin"
    assert env["PWD"] == "/scratch/user1-7/proj"
    assert facts.which == {"torchrun": "/home/user1/envs/lf/bin/torchrun", "srun": None}
    assert facts.shebangs == {"/home/user1/envs/lf/bin/torchrun": "#!/home/user1/envs/lf/bin/python"}
    host = env["MASTER_ADDR"]
    assert re.fullmatch(r"host\d+-17", host)
    stem = host.removesuffix("17")
    assert env["HOSTNAME"].startswith(f"{host}.domain")
    assert env["PET_RDZV_ENDPOINT"] == f"{env['HOSTNAME']}:29400"
    assert env["SLURM_JOB_NODELIST"].startswith(f"{stem}[17-18],host")
    assert facts.accelerate_default_config == f"main_process_ip: {stem}18\nhub_token: {MASK}\nnum_machines: 2\n"
    assert facts.reachable == {host: True}
    assert not isinstance(facts.interfaces, Unknown)
    assert facts.interfaces["lo"] == "127.0.0.1"
    assert facts.interfaces["eth0"] == env["SLURM_LAUNCH_NODE_IPADDR"]
    assert all(address.startswith(("10.", "fd00::", "127.")) for address in facts.interfaces.values())
    assert env["NO_PROXY"].startswith("localhost,127.0.0.1,.domain")
    uuids = [gpu.uuid for gpu in facts.gpus]
    assert all(re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(uuid)) for uuid in uuids)
    assert env["CUDA_VISIBLE_DEVICES"] == f"{uuids[1]},{str(uuids[0])[:12]}"
    assert facts.hub_cache == ("user1/private-base", "Qwen/Qwen2.5-7B")
    assert facts.other is None


def test_what_matters_to_a_diagnosis_stays(private: Facts) -> None:
    facts = anonymised(private, key=KEY)
    assert facts.packages == private.packages
    assert facts.driver == private.driver
    assert facts.wheels == private.wheels
    assert facts.device_nodes == ("/dev/nvidia0",)
    assert facts.environment_names == private.environment_names
    assert not isinstance(facts.environment, Unknown)
    kept = ("SLURM_NTASKS", "SLURM_JOB_GPUS", "WANDB_MODE", "NCCL_SOCKET_IFNAME")
    assert [facts.environment[name] for name in kept] == ["16", "0,1", "offline", "eth0"]
    assert facts.environment["HF_TOKEN"] == MASK
    assert not isinstance(facts.gpu_processes, Unknown)
    assert [process.command for process in facts.gpu_processes] == ["python …", "Xorg"]
    assert [process.user for process in facts.gpu_processes] == ["user2", "root"]


def test_another_key_gives_other_uuids(private: Facts) -> None:
    first, second = anonymised(private), anonymised(private)
    assert not isinstance(first.gpus, Unknown)
    assert not isinstance(second.gpus, Unknown)
    assert first.gpus[0].uuid != second.gpus[0].uuid


def test_names_that_say_nothing_stay(tmp_path: Path) -> None:
    """An account called dev must not turn /dev/nvidia0 into something else."""
    data = {"env": {"USER": "dev", "HOME": "/home/dev", "MASTER_ADDR": "localhost"}, "device_nodes": ["/dev/nvidia0"]}
    facts = load(tmp_path / "facts.json", data)
    assert dump_facts(anonymised(facts, users=["root", ""], hosts=["localhost", ""])) == dump_facts(facts)


def test_addresses_that_are_the_same_everywhere_stay(tmp_path: Path) -> None:
    kept = {"lo": "127.0.0.1", "docker0": "172.17.0.3", "meta": "169.254.169.254", "lo6": "::1"}
    facts = load(tmp_path / "facts.json", {"interfaces": {**kept, "ib0": "fe80::21e:67ff:fe0a:b0c"}})
    assert anonymised(facts).interfaces == {**kept, "ib0": "fd00::1"}


def test_names_of_whoever_asks(tmp_path: Path) -> None:
    data = {"paths": {"/gpfs/tcoil/job": None, "/tmp/kestrel12.lock": None, "/tmp/tcoils": None}}
    facts = anonymised(load(tmp_path / "facts.json", data), users=["tcoil"], hosts=["kestrel12"])
    assert not isinstance(facts.paths, Unknown)
    assert list(facts.paths) == ["/gpfs/user1/job", "/tmp/host1-12.lock", "/tmp/tcoils"]


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("HTTPS_PROXY", "http://me:p@ss/w,rd@proxy:3128", f"http://{MASK}@proxy:3128"),
        ("http_proxy", "me:pw@proxy:3128", f"{MASK}@proxy:3128"),
        ("ALL_PROXY", "socks5h://proxy:1080", "socks5h://proxy:1080"),
        ("HF_ENDPOINT", "https://me@mirror.example/x", f"https://{MASK}@mirror.example/x"),
        ("DS_INCLUDE", "worker-0:0,1@worker-1:2", "worker-0:0,1@worker-1:2"),
        ("HF_HUB_TOKEN", "x", MASK),
        ("SLURM_JWT", "abc", MASK),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
    ],
)
def test_secrets_in_variables(name: str, text: str, shown: str) -> None:
    assert masked(name, text) == shown
    assert masked(name, shown) == shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python t.py --hub_token abc --x 1", f"python t.py --hub_token {MASK} --x 1"),
        ("serve --api-key='a b' --port 1", f"serve --api-key={MASK} --port 1"),
        ("bash -c WANDB_API_KEY=0a1b2c python t.py", f"bash -c WANDB_API_KEY={MASK} python t.py"),
        ("curl -H Authorization: Bearer xyz123", f"curl -H Authorization: Bearer {MASK}"),
        ("git clone https://u:p@h.example/r", f"git clone https://{MASK}@h.example/r"),
        ("x glpat-abcdefghijkl nvapi-abcdefghijkl eyJhbGciOi.J9.x", f"x {MASK} {MASK} {MASK}"),
        ("python t.py --tokenizer a/b --max_new_tokens 5", "python t.py --tokenizer a/b --max_new_tokens 5"),
        ("python t.py --task-type CAUSAL_LM", "python t.py --task-type CAUSAL_LM"),
    ],
)
def test_secrets_in_commands(command: str, shown: str) -> None:
    assert hide_secrets(command) == shown


IDENTITY = re.compile(r"(?:GPU|MIG)-|\b(?!127\.|0\.)\d+(?:\.\d+){3}\b|/(?:home|Users)/[^/\s\"']+")


def names_the_machine(example: Example) -> bool:
    """Whether a command names what stands in the facts: who anonymises these has to replace it there as well."""
    machine = json.dumps({**standard_facts(), **(example.facts or {})})
    typed = "\n".join((example.command or "", *example.files.values()))
    return any(match.group() in machine for match in IDENTITY.finditer(typed))


EXAMPLES = [
    (check, example)
    for check in CHECKS
    for example in (*check.rule.bad, *check.rule.good)
    if example.facts and not example.lint and example.log is None and example.observation is None
    if not names_the_machine(example)
]


def codes(check: AnyCheck, example: Example, facts: Path, work: Path) -> list[tuple[str, str]]:
    request = Request(command=example.command, facts=str(facts), directory=str(work))
    report = diagnose(request, Registry((check,), ()))
    return [(finding.code, finding.severity.value) for finding in report.findings]


def test_the_same_is_found_on_anonymised_facts(tmp_path: Path) -> None:
    """Every example of a rule that has a machine of its own, as it is and with that machine anonymised."""
    differing = []
    for number, (check, example) in enumerate(EXAMPLES):
        work = tmp_path / str(number)
        work.mkdir()
        for name, text in example.files.items():
            file = work / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
        plain, hidden = tmp_path / "plain.json", tmp_path / "hidden.json"
        facts = load(plain, {**standard_facts(), **(example.facts or {})})
        hidden.write_text(json.dumps(dump_facts(anonymised(facts, key=KEY))), encoding="utf-8")
        if codes(check, example, plain, work) != codes(check, example, hidden, work):
            differing.append((check.rule.code, example.title, example.command))
    assert differing == []
