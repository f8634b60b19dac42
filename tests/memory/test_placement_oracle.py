"""The device map against that of accelerate (with transformers 4) and of transformers 5, on models without storage."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mgpu_doctor.memory.architecture import read_architecture
from mgpu_doctor.memory.module_tree import Tree, build_tree
from mgpu_doctor.memory.placement import balanced_memory, place
from mgpu_doctor.model.model_folder import Tensor
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser
from small_models import BUILD, CONFIGS

_MAPS = (
    BUILD
    + """
import transformers
new = int(transformers.__version__.split(".")[0]) >= 5
import accelerate.utils.modeling as modeling
if new:
    from transformers.integrations import accelerate as maps
else:
    class Torch:
        # accelerate 1.7.0 asks torch.device(0) for its type, which torch refuses on a machine without a GPU.
        def __getattr__(self, name):
            return getattr(torch, name)
        @staticmethod
        def device(value, *rest):
            return torch.device("cuda", value) if isinstance(value, int) else torch.device(value, *rest)
    modeling.torch = Torch()
def mapped(model, rooms, low_zero, sequential, dtype):
    rooms = {int(key) if key.isdigit() else key: value for key, value in rooms.items()}
    if new:
        classes = model._no_split_modules
        if not sequential:
            rooms = maps.get_balanced_memory(model, max_memory=rooms, no_split_module_classes=classes,
                                             low_zero=low_zero)
        return rooms, maps.infer_auto_device_map(model, max_memory=rooms, no_split_module_classes=classes)
    classes = model._get_no_split_modules("auto")
    kind = DTYPES[dtype]
    if not sequential:
        rooms = modeling.get_balanced_memory(model, max_memory=rooms, no_split_module_classes=classes, dtype=kind,
                                             low_zero=low_zero)
    return rooms, modeling.infer_auto_device_map(model, max_memory=rooms, no_split_module_classes=classes, dtype=kind)
result = {}
for name, values, dtype, settings in payload:
    model = build(name, values, dtype)
    answers = []
    for rooms, low_zero, sequential in settings:
        room, found = mapped(model, rooms, low_zero, sequential, dtype)
        answers.append([[[str(key), value] for key, value in room.items()], list(found.items())])
    result[f"{name} {dtype}"] = {**described(model), "answers": answers}
"""
)


def rooms_for(total: int, seed: int) -> list[tuple[dict[str, int], bool, bool]]:
    """Settings around the sizes at which maps change: cards, host and the way to spread."""
    chance = random.Random(seed)
    found = []
    for _ in range(40):
        cards = chance.choice((1, 2, 2, 3, 4, 4, 8))
        scale = chance.choice((0.15, 0.4, 0.7, 1.0, 1.3, 3.0, 10.0))
        rooms = {str(card): int(total * scale / cards * chance.uniform(0.5, 1.5)) for card in range(cards)}
        rooms["cpu"] = int(total * chance.choice((0.3, 1.0, 5.0)))
        found.append((rooms, chance.random() < 0.2, chance.random() < 0.25))
    return found


@pytest.fixture(scope="module")
def settings() -> list[list[Any]]:
    made = []
    for seed, (name, values) in enumerate(CONFIGS.items()):
        layers = values.get("num_hidden_layers", values.get("n_layer", 6))
        hidden = values.get("hidden_size", values.get("n_embd", 64))
        about = layers * 12 * hidden * hidden + 2 * values["vocab_size"] * hidden
        made += [[name, values, "bf16", rooms_for(about * 2, seed)], [name, values, "fp32", rooms_for(about * 4, seed)]]
    return made


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_the_same_map(environment: str, settings: list[list[Any]]) -> None:
    answers = run_parser(environment, _MAPS, settings)
    compared = 0
    spread = set()
    for name, values, dtype, asked in settings:
        told = answers[f"{name} {dtype}"]
        tensors = tuple(Tensor(n, d, tuple(shape)) for n, d, shape in told["tensors"])
        config = {**told["config"], **values, "model_type": name.partition("-")[0]}
        tree = tree_of(tensors, config, dtype, environment)
        for (rooms, low_zero, sequential), (room, found) in zip(asked, told["answers"], strict=True):
            free = {int(key) if key.isdigit() else key: float(value) for key, value in rooms.items()}
            ours = dict(free) if sequential else balanced_memory(tree, free, low_zero=low_zero, limited=True)
            theirs = {int(key) if key.isdigit() else key: value for key, value in room}
            said = (environment, name, dtype, rooms, low_zero, sequential)
            assert ours == pytest.approx(theirs), said
            mine = place(tree, ours)
            assert mine == dict(found), said
            compared += 1
            spread.add(len({*mine.values()}))
    assert compared == len(settings) * 40
    assert len(spread) > 4, "the settings reach maps on one and on many devices"


def tree_of(tensors: tuple[Tensor, ...], config: dict[str, Any], dtype: str, environment: str) -> Tree:
    architecture = read_architecture(config)
    assert architecture is not None
    if architecture.tied:
        tensors = tuple(t for t in tensors if t.name not in {"lm_head.weight", "embed_out.weight"})
    tree = build_tree(tensors, architecture, config, 2 if dtype == "bf16" else 4, new=environment == "new")
    assert isinstance(tree, Tree), tree
    return tree
