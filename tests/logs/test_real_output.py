"""The output of real programs that were made to fail, as they printed it (paths and host names replaced).

The names say which program and release. Each must be named by its cause, first, and a run that ends well by none.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.diagnose_logs import diagnose_logs
from mgpu_doctor.registry import load_checks
from mgpu_doctor.settings import Settings

LOGS = Path(__file__).parent.parent / "fixtures" / "logs"
REGISTRY = load_checks()

CAUSES: dict[str, str | None] = {
    "torchrun-2.13-killed": "killed-by-host",
    "torchrun-2.13-rank_fails": "cause-unknown",
    "accelerate-1.15-choice": "launcher-option-invalid",
    "accelerate-1.15-config_missing": "target-not-found",
    "accelerate-1.15-exclusive": "launcher-options-conflict",
    "accelerate-1.15-sigkill": "killed-by-host",
    "accelerate-1.15-single": "single-process-in-fact",
    "accelerate-1.15-typo": "launcher-option-unknown",
    "accelerate-1.7-port_busy": "port-in-use",
    "bash-5.2-blank_behind": "continuation-broken",
    "bash-5.2-carriage_returns": "crlf-line-endings",
    "bash-5.2-not_found": "launcher-not-installed",
    "bash-5.2-option_alone": "continuation-missing",
    "bash-5.2-quote": "syntax-error",
    "dash-0.5-not_found": "launcher-not-installed",
    "dash-0.5-option_alone": "continuation-missing",
    "deepspeed-0.16-module_option": "launcher-option-unknown",
    "deepspeed-0.19-batch": "batch-equation",
    "deepspeed-0.19-config": "deepspeed-config-invalid",
    "deepspeed-0.19-hostfile": "hostfile-mismatch",
    "deepspeed-0.19-hostfile_twice": "hostfile-mismatch",
    "deepspeed-0.19-module_option": "launcher-option-unknown",
    "deepspeed-0.19-no_batch": "deepspeed-config-invalid",
    "deepspeed-0.19-no_gpu": "no-visible-device",
    "gloo-2.13-barrier": "ranks-diverge",
    "gloo-2.13-interface": "interface-missing",
    "launch-2.13-local_rank": "local-rank-argument",
    "llamafactory-0.9.5-subcommand": "subcommand-wrong",
    "python-3.11-disk_full": "output-not-writable",
    "python-3.11-local_rank": "launcher-missing",
    "python-3.11-no_accelerate": "launcher-not-installed",
    "python-3.11-open_files": "limits-too-low",
    "python-3.11-port_busy": "port-in-use",
    "safetensors-0.8-pointer": "model-files-incomplete",
    "torch-2.13-client_timeout": "network-isolated",
    "torch-2.13-cpu_build": "torch-without-cuda",
    "torch-2.13-no_rank": "launcher-missing",
    "torch-2.13-pointer": "model-files-incomplete",
    "torch-2.13-resolve": "master-address-wrong",
    "torch-2.13-server_timeout": "network-isolated",
    "torch-2.13-worker_bus": "shm-too-small",
    "torch-2.13-worker_killed": "killed-by-host",
    "torchrun-2.13-after_script": "launcher-option-after-script",
    "torchrun-2.13-ambiguous": "launcher-option-unknown",
    "torchrun-2.13-console_script": "console-script-under-launcher",
    "torchrun-2.13-healthy": None,
    "torchrun-2.13-invalid": "launcher-option-invalid",
    "torchrun-2.13-missing_script": "target-not-found",
    "torchrun-2.13-no_script": "launcher-option-invalid",
    "torchrun-2.13-nproc_gpu": "no-visible-device",
    "torchrun-2.13-package": "module-not-executable",
    "torchrun-2.13-port_busy": "port-in-use",
    "torchrun-2.13-python": "interpreter-as-script",
    "torchrun-2.13-sigbus": "shm-too-small",
    "torchrun-2.13-typo": "launcher-option-unknown",
    "transformers-5.6-keyword": "version-out-of-range",
    "transformers-5.6-no_config": "model-files-incomplete",
    "transformers-5.6-offline": "offline-but-remote",
    "transformers-5.6-unused": "target-option-unknown",
}


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_the_cause_comes_first(name: str) -> None:
    report = diagnose_logs([str(LOGS / f"{name}.txt")], REGISTRY, Settings())
    found = [finding.slug for finding in report.findings]
    assert found[:1] == ([] if CAUSES[name] is None else [CAUSES[name]])
