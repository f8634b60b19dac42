"""The lines by which rules know a failed run: each finds its own, none finds another cause's or an ordinary line."""

from __future__ import annotations

import re

import pytest

from mgpu_checks import CHECKS
from mgpu_doctor.authoring import Signature

SIGNATURES = [(check.rule.code, signature) for check in CHECKS for signature in check.rule.signatures]

TWO_CAUSES = [{"MGD109", "MGD609"}]
"""Pairs of causes that the same line gives away: swift's refusal of DeepSpeed in one process with several GPUs."""

ORDINARY = (
    "{'loss': 1.2345, 'grad_norm': 0.9, 'learning_rate': 1e-05, 'epoch': 0.5}",
    "  0%|          | 0/1000 [00:00<?, ?it/s]",
    "Loading checkpoint shards: 100%|██████████| 4/4 [00:05<00:00,  1.25s/it]",
    "[2026-11-26 06:16:23,951] [INFO] [real_accelerator.py:254:get_accelerator] Setting ds_accelerator to cuda",
    "Using custom data configuration default-0123456789abcdef",
    "***** Running training *****",
    "Saving model checkpoint to out/checkpoint-500",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    "Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, to avoid your system being",
    '  File "/opt/env/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1511, in _call_impl',
    '  File "/home/me/train.py", line 12, in <module>',
    "NCCL INFO Bootstrap : Using eth0:10.0.0.5<0>",
    "Some weights of LlamaForSequenceClassification were not initialized from the model checkpoint at models/base",
    "You are using the default legacy behaviour of the tokenizer.",
    "Downloading shards: 100%|██████████| 2/2 [00:00<00:00, 9.5it/s]",
    "Resuming training from out/checkpoint-500.",
    "Process 0 initialized with backend nccl",
    "HF_ENDPOINT=https://hf-mirror.com",
)


def _name(value: object) -> str | None:
    return value.pattern[:40] if isinstance(value, Signature) else None


@pytest.mark.parametrize(("code", "signature"), SIGNATURES, ids=_name)
def test_a_signature_finds_its_own_line(code: str, signature: Signature) -> None:
    assert re.search(signature.pattern, signature.line), f"{code}: {signature.pattern}"
    assert "\n" not in signature.line
    assert re.search(r"\d", signature.where), f"{code} names the release that prints it"


@pytest.mark.parametrize(("code", "signature"), SIGNATURES, ids=_name)
def test_a_signature_leaves_the_lines_of_other_causes_alone(code: str, signature: Signature) -> None:
    if signature.weak:
        return
    claimed = {
        other
        for other, one in SIGNATURES
        if other != code and not one.weak and re.search(signature.pattern, one.line) and {code, other} not in TWO_CAUSES
    }
    assert not claimed


@pytest.mark.parametrize(("code", "signature"), SIGNATURES, ids=_name)
def test_a_signature_leaves_ordinary_lines_alone(code: str, signature: Signature) -> None:
    assert not [line for line in ORDINARY if re.search(signature.pattern, line)], code
