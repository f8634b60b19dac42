"""What frameworks demand of other packages when they start, release by release.

These checks stand in the frameworks' own code and stop the program; what distributions declare in their metadata is
another matter. A row holds from ``since`` on, up to but without ``until``; where the exact release of a change was not
looked at, a row is cut or weakened so that it says nothing about the releases between.
"""

from __future__ import annotations

from mgpu_doctor.authoring import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """``of`` from ``since`` until ``until`` wants ``needs`` to be ``specifiers``.

    ``when`` it asks: ``import`` (always), ``trainer``, ``deepspeed``, ``fsdp``, ``fsdp2``, ``llamafactory`` (at its
    start). ``says`` is what it prints; ``{version}`` is the installed one. ``silenced`` marks demands that
    DISABLE_VERSION_CHECK switches off.
    """

    of: str
    since: tuple[int, ...]
    until: tuple[int, ...] | None
    needs: str
    specifiers: str
    when: str
    says: str
    silenced: bool = False


_ERROR = "ImportError: {wanted} is required for a normal functioning of this module, but found {found}"
_TRAINER = "ImportError: Using the `Trainer` with `PyTorch` requires `{wanted}`"
_DISABLED = "Disabling PyTorch because PyTorch >= {least} is required but found {version}"
_NAME = "ImportError: cannot import name {name!r}"
_FSDP = "ValueError: FSDP requires PyTorch >= {least}"

_LLAMAFACTORY_08 = {
    "transformers": ">=4.41.2",
    "datasets": ">=2.16.0",
    "accelerate": ">=0.30.1",
    "peft": ">=0.11.1",
    "trl": ">=0.8.6",
}
_LLAMAFACTORY: dict[tuple[int, ...], dict[str, str]] = {
    (0, 7, 1): {
        "transformers": ">=4.37.2",
        "datasets": ">=2.14.3",
        "accelerate": ">=0.27.2",
        "peft": ">=0.10.0",
        "trl": ">=0.8.1",
    },
    **{(0, 8, patch): _LLAMAFACTORY_08 for patch in range(4)},
    (0, 9, 0): {
        "transformers": ">=4.41.2,<=4.45.0",
        "datasets": ">=2.16.0,<=2.21.0",
        "accelerate": ">=0.30.1,<=0.33.0",
        "peft": ">=0.11.1,<=0.12.0",
        "trl": ">=0.8.6,<=0.9.6",
    },
    (0, 9, 1): {
        "transformers": ">=4.41.2,<=4.46.1",
        "datasets": ">=2.16.0,<=3.1.0",
        "accelerate": ">=0.34.0,<=1.0.1",
        "peft": ">=0.11.1,<=0.12.0",
        "trl": ">=0.8.6,<=0.9.6",
    },
    (0, 9, 2): {
        "transformers": ">=4.41.2,<=4.49.0,!=4.46.0,!=4.46.1,!=4.46.2,!=4.46.3,!=4.47.0,!=4.47.1,!=4.48.0",
        "datasets": ">=2.16.0,<=3.2.0",
        "accelerate": ">=0.34.0,<=1.2.1",
        "peft": ">=0.11.1,<=0.12.0",
        "trl": ">=0.8.6,<=0.9.6",
    },
    (0, 9, 3): {
        "transformers": ">=4.45.0,<=4.52.4,!=4.46.0,!=4.46.1,!=4.46.2,!=4.46.3,!=4.47.0,!=4.47.1,!=4.48.0,!=4.52.0",
        "datasets": ">=2.16.0,<=3.6.0",
        "accelerate": ">=0.34.0,<=1.7.0",
        "peft": ">=0.14.0,<=0.15.2",
        "trl": ">=0.8.6,<=0.9.6",
    },
    (0, 9, 4): {
        "transformers": ">=4.51.0,<=4.57.1",
        "datasets": ">=2.16.0,<=4.0.0",
        "accelerate": ">=1.3.0,<=1.11.0",
        "peft": ">=0.14.0,<=0.17.1",
        "trl": ">=0.18.0,<=0.24.0",
    },
    (0, 9, 5): {
        "transformers": ">=4.55.0,<=5.6.0",
        "datasets": ">=2.16.0,<=4.0.0",
        "accelerate": ">=1.3.0,<=1.15.0",
        "peft": ">=0.18.0,<=0.20.0",
        "trl": ">=0.18.0,<=0.24.0",
    },
}
"""extras/misc.py check_dependencies() of each release; skipped with DISABLE_VERSION_CHECK=1."""


def _of_llamafactory() -> tuple[Demand, ...]:
    rows = []
    for release, wanted in _LLAMAFACTORY.items():
        after = (*release[:-1], release[-1] + 1)
        for needs, specifiers in wanted.items():
            rows.append(Demand("llamafactory", release, after, needs, specifiers, "llamafactory", _ERROR, True))
    return tuple(rows)


DEMANDS: tuple[Demand, ...] = (
    *_of_llamafactory(),
    # llamafactory 0.9.3 and 0.9.4, hparams/parser.py get_train_args(); mandatory in 0.9.3.
    Demand("llamafactory", (0, 9, 3), (0, 9, 4), "deepspeed", ">=0.10.0,<=0.16.9", "deepspeed", _ERROR),
    Demand("llamafactory", (0, 9, 4), (0, 9, 5), "deepspeed", ">=0.10.0,<=0.16.9", "deepspeed", _ERROR, True),
    # transformers, dependency_versions_check.py and dependency_versions_table.py: 4.33.3, 4.36.2, 4.37.2, 4.40.2,
    # 4.42.4, 4.45.2, 4.48.3, 4.50.3, 4.52.4, 4.57.6, 5.0.0, 5.6.0 and 5.23.0; the weakest bound of each span.
    Demand("transformers", (4, 33, 3), (4, 57, 7), "huggingface-hub", ">=0.15.1,<1.0", "import", _ERROR),
    Demand("transformers", (5, 0, 0), None, "huggingface-hub", ">=1.3.0", "import", _ERROR),
    Demand("transformers", (4, 33, 3), (4, 37), "accelerate", ">=0.20.3", "import", _ERROR),
    # transformers 4.30.2 … 5.23.0, training_args.py _setup_devices() and utils/import_utils.py ACCELERATE_MIN_VERSION.
    Demand("transformers", (4, 30, 2), (4, 37), "accelerate", ">=0.20.1", "trainer", _TRAINER),
    Demand("transformers", (4, 37, 2), (4, 45, 2), "accelerate", ">=0.21.0", "trainer", _TRAINER),
    Demand("transformers", (4, 45, 2), (5, 0, 0), "accelerate", ">=0.26.0", "trainer", _TRAINER),
    Demand("transformers", (5, 0, 0), None, "accelerate", ">=1.1.0", "trainer", _TRAINER),
    # transformers 4.52.4, 4.57.6, 5.0.0, 5.6.0 and 5.23.0, utils/import_utils.py is_torch_available().
    Demand("transformers", (4, 52, 4), (5, 0, 0), "torch", ">=2.1.0", "import", _DISABLED),
    Demand("transformers", (5, 0, 0), (5, 6, 0), "torch", ">=2.2.0", "import", _DISABLED),
    Demand("transformers", (5, 6, 0), (5, 23, 0), "torch", ">=2.4.0", "import", _DISABLED),
    Demand("transformers", (5, 23, 0), None, "torch", ">=2.6.0", "import", _DISABLED),
    # transformers 4.28.1, 4.30.2 and 4.33.3 … 5.23.0, integrations/deepspeed.py HfDeepSpeedConfig.
    Demand("transformers", (4, 28, 1), (4, 33, 3), "deepspeed", ">=0.8.3", "deepspeed", _ERROR),
    Demand("transformers", (4, 33, 3), None, "deepspeed", ">=0.9.3", "deepspeed", _ERROR),
    # deepspeed 0.9.5 … 0.14.0 import log, 0.14.1 … 0.14.3 _get_socket_with_port from
    # torch.distributed.elastic.agent.server.api (elasticity/elastic_agent.py); torch 2.3.1 has both, 2.4.0 neither.
    Demand("deepspeed", (0, 9, 5), (0, 14, 1), "torch", "<2.4.0", "import", _NAME.format(name="log")),
    Demand(
        "deepspeed", (0, 14, 1), (0, 14, 4), "torch", "<2.4.0", "import", _NAME.format(name="_get_socket_with_port")
    ),
    # pyarrow 26.0.0 and 26.0.1 with numpy 1.26.4 (25.0.0 takes it); nothing of it stands in pyarrow's metadata.
    Demand(
        "pyarrow",
        (26, 0, 0),
        None,
        "numpy",
        ">=2.0",
        "import",
        "ImportError: pyarrow requires NumPy 2.0 or newer, found {version}",
    ),
    # peft 0.15.2, 0.16.0 and 0.18.1, utils/loftq_utils.py; accelerate 0.31.0 lacks it, 0.32.1 has it.
    Demand("peft", (0, 15, 2), None, "accelerate", ">=0.32.0", "import", _NAME.format(name="clear_device_cache")),
    # accelerate 0.20.3, 0.21.0 … 0.24.1, 0.25.0 … 0.33.0 and 0.34.2 … 1.15.0, accelerator.py Accelerator.__init__()
    # and utils/constants.py FSDP_PYTORCH_VERSION.
    Demand("accelerate", (0, 20, 3), (0, 21, 0), "torch", ">=1.12.0", "fsdp", _FSDP),
    Demand("accelerate", (0, 21, 0), (0, 25, 0), "torch", ">=2.0.1", "fsdp", _FSDP),
    Demand("accelerate", (0, 25, 0), (0, 33, 1), "torch", ">=2.1.0", "fsdp", _FSDP),
    Demand("accelerate", (0, 33, 1), None, "torch", ">=2.1.0.a0", "fsdp", _FSDP),
    # accelerate 1.7.0, 1.10.1 and 1.15.0, accelerator.py and utils/constants.py FSDP2_PYTORCH_VERSION.
    Demand(
        "accelerate", (1, 7, 0), None, "torch", ">=2.6.0", "fsdp2", "ImportError: FSDP2 requires PyTorch >= {least}"
    ),
)
"""Every demand; a package that is not installed, or whose version is not known, breaks none."""

CHECKED_WHEN_IMPORTED = frozenset({"huggingface-hub", "tokenizers", "safetensors", "numpy"})
"""What transformers declares and compares as well (dependency_versions_check.py, 4.33.3 to 5.23.0)."""

TORCHVISION: dict[tuple[int, ...], tuple[int, int]] = {
    (0, 15): (2, 0),
    (0, 16): (2, 1),
    (0, 17): (2, 2),
    (0, 18): (2, 3),
    (0, 19): (2, 4),
    (0, 20): (2, 5),
    (0, 21): (2, 6),
    (0, 22): (2, 7),
    (0, 23): (2, 8),
    (0, 24): (2, 9),
}
"""torchvision → the torch that it is compiled against (metadata of 0.15.2, 0.16.2, 0.17.2 … 0.24.1: ``torch==2.0.1``
and so on)."""
