"""The numbers of ``accelerate estimate-memory`` and of DeepSpeed's estimators, where they count the same as we do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mgpu_doctor.memory.architecture import read_architecture
from mgpu_doctor.memory.estimate import estimate_loading
from mgpu_doctor.memory.module_tree import build_tree, largest_layer
from mgpu_doctor.memory.zero import estimate_zero2, estimate_zero3, least_card
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import Tensor
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser
from small_models import BUILD, CONFIGS

pytestmark = [pytest.mark.oracle]
both = pytest.mark.parametrize(
    "environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS]
)

_ACCELERATE = (
    BUILD
    + """
from types import SimpleNamespace
from accelerate.commands import estimate
result = {}
for name, values in payload:
    model = build(name, values, "fp32")
    estimate.create_empty_model = lambda *rest, **more: model
    args = SimpleNamespace(model_name=name, library_name="transformers", trust_remote_code=False,
                           dtypes=["float32", "float16", "int8", "int4"])
    result[name] = {**described(model), "rows": estimate.gather_data(args)}
"""
)


@both
def test_accelerates_table(environment: str) -> None:
    answers = run_parser(environment, _ACCELERATE, [[name, values] for name, values in CONFIGS.items()])
    for name, values in CONFIGS.items():
        told = answers[name]
        tensors = tuple(Tensor(n, d, tuple(shape)) for n, d, shape in told["tensors"])
        config = {**told["config"], **values, "model_type": name.partition("-")[0]}
        architecture = read_architecture(config)
        assert architecture is not None
        if architecture.tied:
            tensors = tuple(t for t in tensors if t.name not in {"lm_head.weight", "embed_out.weight"})
        tree = build_tree(tensors, architecture, config, 4, new=environment == "new")
        assert not isinstance(tree, Unknown), tree
        for dtype, layer, total, training in told["rows"]:
            ours = estimate_loading(tree.sizes[""], largest_layer(tree), dtype)
            assert ours.largest_layer == layer, (name, dtype)
            assert ours.total == total, (name, dtype)
            most = max(training.values())
            assert ours.training == (None if most == -1 else most), (name, dtype)


_DEEPSPEED = """
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as two
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as three
result = []
for parameters, layer, per_node, nodes, offload, more, zero_init, factor in payload:
    result.append([list(two(parameters, per_node, nodes, offload, factor)),
                   list(three(parameters, layer, per_node, nodes, offload, more, zero_init, factor))])
"""


@both
def test_deepspeeds_estimates(environment: str) -> None:
    settings: list[tuple[Any, ...]] = list(
        itertools.product(
            (124_439_808, 8_030_261_248, 70_553_706_496),
            (38_597_376, 525_336_576),
            (1, 3, 8),
            (1, 4),
            (True, False),
            (True, False),
            (True, False),
            (1.0, 1.5),
        )
    )
    for setting, (two, three) in zip(settings, run_parser(environment, _DEEPSPEED, settings), strict=True):
        parameters, layer, per_node, nodes, offload, more, zero_init, factor = setting
        assert list(estimate_zero2(parameters, per_node, nodes, offload=offload, factor=factor)) == two
        ours = estimate_zero3(
            parameters,
            layer,
            per_node,
            nodes,
            offload=offload,
            offload_parameters=more,
            zero_init=zero_init,
            factor=factor,
        )
        assert list(ours) == three[:2], setting
        if not offload:
            assert least_card(parameters, 2, per_node * nodes, 2, 12) <= two[1]
            assert least_card(parameters, 3, per_node * nodes, 2, 12) <= three[1]
