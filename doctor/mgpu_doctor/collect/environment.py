"""The variables that a launch would inherit, and which of them must never be shown."""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.pattern import pattern

MASK = "***"

PREFIXES = (
    "ACCELERATE_",
    "CONDA_",
    "CUDA_",
    "CUBLAS_",
    "DATASETS_",
    "DEEPSPEED_",
    "DS_",
    "FI_",
    "FSDP_",
    "GLOO_",
    "HF_",
    "HUGGINGFACE_",
    "HUGGING_FACE_",
    "I_MPI_",
    "LLAMAFACTORY_",
    "LMF_",
    "MASTER_",
    "MKL_",
    "MODELSCOPE_",
    "MV2_",
    "NCCL_",
    "NVIDIA_",
    "OMPI_",
    "OMP_",
    "PARALLELISM_CONFIG_",
    "PDSH_",
    "PET_",
    "PMIX_",
    "PMI_",
    "PYTHON",
    "PYTORCH_",
    "RANK",
    "RAY_",
    "RDZV_",
    "ROCR_",
    "HIP_",
    "SLURM_",
    "SLURMD_",
    "SWIFT_",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
    "UCX_",
    "USE_",
    "VLLM_",
    "WANDB_",
    "XLA_",
)
"""Beginnings of the names of variables that launchers, frameworks and their libraries read."""

NAMES = frozenset(
    {
        "ALLOW_EXTRA_ARGS",
        "API_HOST",
        "API_PORT",
        "DISABLE_VERSION_CHECK",
        "DISTRIBUTED_CONDITION",
        "FORCE_TORCHRUN",
        "FORCE_CHECK_IMPORTS",
        "GRADIO_SERVER_NAME",
        "GRADIO_SERVER_PORT",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "HOME",
        "HOSTNAME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "KUBERNETES_SERVICE_HOST",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MAX_NNODES",
        "MAX_RESTARTS",
        "MIN_NNODES",
        "NNODES",
        "NODE_RANK",
        "NO_PROXY",
        "NPROC_PER_NODE",
        "PATH",
        "PWD",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "SHELL",
        "TMPDIR",
        "USER",
        "VIRTUAL_ENV",
        "WORLD_SIZE",
        "XDG_CACHE_HOME",
        "all_proxy",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    }
)

# CUDA_VISABLE_DEVICES, MASTER_PROT: a misspelt name is worth seeing too.
_MISSPELT = pattern(r"VIS\w*DEVICE|DEVICES?$")
_SECRET = pattern(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|PASSWD|PASS|PASSPHRASE|CREDENTIALS?|AUTH|JWT|COOKIE)(?:_|$)"
)
_USER_IN_ADDRESS = pattern(r"://\S*@")
# Up to the last @ of the word: a password may hold an @, a comma or a slash that nobody encoded.
_USER_IN_PROXY = pattern(r"^(?![a-zA-Z][\w+.-]*://)\S*@")
_TOKEN = pattern(
    r"\b(?:hf_|api_org_|sk-|gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|nvapi-|AKIA|AIza|eyJ)[A-Za-z0-9_.-]{8,}"
)
_GIVEN = pattern(
    r"(?i)(?P<name>--?[\w-]*(?:token|api[-_]?key|passw(?:or)?d|secret|credentials?|access[-_]?key)(?:=|\s+)"
    r"|\b(?:\w*_)?(?:TOKEN|API_?KEY|PASSW(?:OR)?D|SECRET|CREDENTIALS?|ACCESS_?KEY)(?:=|:[ \t]+)"
    r"|\bBearer\s+)(?P<value>\"[^\"]*\"|'[^']*'|\S+)"
)
"""A secret by the name that it is given with: ``--hub_token x``, ``WANDB_API_KEY=x``, ``hub_token: x``."""


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the allow-list, secrets masked."""
    found = {}
    for name, text in environment.items():
        if name in NAMES or name.startswith(PREFIXES) or _MISSPELT.search(name):
            found[name] = masked(name, text)
    return found


def masked(name: str, text: str) -> str:
    """A variable's text, or what may be shown of it when its name or its form says that it is a secret."""
    if _SECRET.search(name.upper()):
        return MASK if text else text
    text = hide_secrets(text)
    return _USER_IN_PROXY.sub(f"{MASK}@", text) if name.upper().endswith("_PROXY") else text


def hide_secrets(text: str) -> str:
    """A text without the access tokens, passwords and user names in addresses that it may hold."""
    if "://" in text:
        text = _USER_IN_ADDRESS.sub(f"://{MASK}@", text)
    return _GIVEN.sub(lambda match: match.group("name") + MASK, _TOKEN.sub(MASK, text))
