#!/usr/bin/env python3
"""Makes the environments in which tests ask the real launchers: ``.oracles/old`` and ``.oracles/new``.

Each is a plain venv with everything pinned and installed without dependency resolution. torch is the
build without CUDA; any other is refused. Quick when an environment is already as it should be.

    python tools/oracles.py               # both
    python tools/oracles.py --only old
    python tools/oracles.py --check       # only say whether they are there

Exit status 0 when every wanted environment is ready, 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / ".oracles"
PYTHON = "3.11"
TORCH = "torch==2.13.0"
BUILD = ("setuptools==80.9.0", "wheel==0.45.1")
"""DeepSpeed comes as source; its setup.py looks for torch, so it is built inside the environment."""

SHARED = [
    "aiohappyeyeballs==2.7.1",
    "aiohttp==3.14.5",
    "aiosignal==1.4.0",
    "annotated-types==0.8.0",
    "attrs==26.1.0",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "dill==0.3.8",
    "einops==0.8.2",
    "filelock==4.2.12",
    "frozenlist==1.8.0",
    "fsspec==2025.3.0",
    "hf-xet==1.8.0",
    "hjson==3.1.0",
    "idna==3.20",
    # LLaMA-Factory asks for these three before it predicts with generation.
    "jieba==0.42.1",
    "Jinja2==3.1.6",
    "MarkupSafe==3.0.4",
    "mpmath==1.3.0",
    "msgpack==1.2.4",
    "multidict==7.2.1",
    "multiprocess==0.70.16",
    "networkx==3.6.1",
    "nltk==3.9.1",
    "ninja==1.13.2",
    "omegaconf==2.4.0",
    "packaging==26.3",
    "propcache==0.5.4",
    "psutil==7.2.2",
    "py-cpuinfo==9.0.0",
    "python-dateutil==4.0.0",
    "PyYAML==6.0.3",
    "regex==2026.11.15",
    "requests==2.34.2",
    "rouge-chinese==1.0.3",
    "safetensors==0.8.0",
    "sympy==1.14.0",
    "tqdm==4.70.1",
    "typing_extensions==4.16.0",
    "tzdata==2026.6",
    "urllib3==2.8.0",
    "xxhash==4.1.0",
    "yarl==1.25.1",
]

OLD = [
    "accelerate==1.7.0",
    "datasets==3.6.0",
    "huggingface_hub==0.36.2",
    "llamafactory==0.9.3",
    "numpy==1.26.4",
    "pandas==3.0.6",
    "peft==0.15.2",
    "pyarrow==19.0.1",
    "pydantic==2.10.6",
    "pydantic_core==2.27.2",
    "tokenizers==0.21.4",
    "transformers==4.52.4",
    "trl==0.9.6",
]

NEW = [
    "accelerate==1.15.0",
    "annotated-doc==0.0.7",
    "anyio==4.16.0",
    "click==8.5.1",
    "datasets==4.0.0",
    "h11==0.16.0",
    "httpcore==1.0.9",
    "httpx==0.28.1",
    "huggingface_hub==1.33.0",
    "llamafactory==0.9.5",
    "markdown-it-py==4.3.0",
    "mdurl==0.1.2",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "peft==0.18.1",
    "pyarrow==26.0.1",
    "pydantic==2.14.3",
    "pydantic_core==2.50.4",
    "Pygments==2.21.0",
    "rich==15.0.0",
    "shellingham==1.5.4",
    "tokenizers==0.22.2",
    "transformers==5.6.0",
    "trl==0.24.0",
    "typer==0.29.2",
    "typing-inspection==0.4.5",
]

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "old": (*SHARED, *OLD, "deepspeed==0.16.9"),
    "new": (*SHARED, *NEW, "deepspeed==0.19.8"),
}


class OracleError(Exception):
    """An environment cannot be made; the message says why."""


def find_python() -> str:
    """An interpreter of the wanted minor release.

    Raises:
        OracleError: when there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        return sys.executable
    found = shutil.which(f"python{PYTHON}")
    if found is None:
        raise OracleError(f"python{PYTHON} is needed and not on PATH")
    return found


def recipe(name: str) -> str:
    """What an environment is made of, as a digest: a changed pin makes it anew."""
    return hashlib.sha256("\n".join((PYTHON, TORCH, *BUILD, *sorted(ENVIRONMENTS[name]))).encode()).hexdigest()


def is_ready(name: str) -> bool:
    """Whether the environment has been made completely from the present pins."""
    marker = ROOT / name / "complete"
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == recipe(name)


def pip(python: Path, *arguments: str) -> None:
    """Runs pip in an environment.

    Raises:
        OracleError: when pip fails; the message ends with what it printed.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise OracleError(f"pip {' '.join(arguments)[:120]} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def make(name: str) -> None:
    """Makes one environment.

    Raises:
        OracleError: when it cannot be made.
    """
    folder = ROOT / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([find_python(), "-m", "venv", str(folder)], check=True)
    pins = [pin for pin in ENVIRONMENTS[name] if not pin.startswith("deepspeed==")]
    deepspeed = next(pin for pin in ENVIRONMENTS[name] if pin.startswith("deepspeed=="))
    pip(python, "install", "-q", "--no-deps", TORCH, *BUILD, *pins)
    if any(folder.glob("lib/python*/site-packages/torch/lib/libtorch_cuda*")):
        raise OracleError("the index served a torch with CUDA; point pip at one with the build for CPUs")
    pip(python, "install", "-q", "--no-deps", "--no-build-isolation", deepspeed)
    (folder / "complete").write_text(recipe(name) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(ENVIRONMENTS), help="only this environment")
    parser.add_argument("--check", action="store_true", help="make nothing, only say whether they are ready")
    arguments = parser.parse_args()
    failed = False
    for name in [arguments.only] if arguments.only else list(ENVIRONMENTS):
        started = time.monotonic()
        try:
            if not is_ready(name) and not arguments.check:
                make(name)
        except (OracleError, subprocess.CalledProcessError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
        ready = is_ready(name)
        failed |= not ready
        print(f"{name}: {ROOT / name} {'ready' if ready else 'missing'} ({time.monotonic() - started:.0f} s)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
