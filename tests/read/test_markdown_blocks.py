"""Commands in documents, and the way back to their places."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.model.source import Source
from mgpu_doctor.read.markdown import excerpts
from mgpu_doctor.read.shellfile import excerpts as of_shell_file


def _texts(text: str, kind: str = "markdown") -> list[str]:
    return [excerpt.text for excerpt in excerpts(Source("x.md", text, kind))]


@pytest.mark.parametrize("language", ["bash", "sh", "shell", "console", "zsh", "bash title=run", "{.bash}", "Bash"])
def test_fences_in_a_shell_language(language: str) -> None:
    assert _texts(f"a\n```{language}\ntorchrun a.py\n```\nb\n") == ["torchrun a.py"]


@pytest.mark.parametrize("language", ["yaml", "json", "diff", "powershell"])
def test_fences_in_another_language(language: str) -> None:
    assert _texts(f"```{language}\ntorchrun a.py\n```\n") == []


def test_fences_without_a_language_need_a_launch() -> None:
    assert _texts("```\naccelerate launch a.py\n```\n") == ["accelerate launch a.py"]
    assert _texts("```\nRun python to see.\n```\n") == []
    assert _texts("```\nimport torch\npython a.py\n```\n") == []


def test_a_fence_is_called_python_and_holds_a_command() -> None:
    assert _texts("```python\n# two GPUs\nA=1 \\\nswift sft \\\n  --x 1\n```\n") == [
        "# two GPUs\nA=1 \\\nswift sft \\\n  --x 1"
    ]
    assert _texts("```py\ndeepspeed --num_gpus 1 a.py\n```\n") == ["deepspeed --num_gpus 1 a.py"]
    assert _texts("```python\n!torchrun a.py\nx = 1\n```\n") == ["torchrun a.py"]
    assert _texts("```ipython\nimport os\n!cd b\n!torchrun \\\n  a.py\nx = 1\n```\n") == ["cd b\ntorchrun \\\n  a.py"]


@pytest.mark.parametrize(
    "text",
    [
        "deepspeed = build(1)",
        "swift = Swift(...)\nprint swift",
        "import torch\ntorchrun a.py",
        "x = 1",
        "composer - 1",
        "if x\n    python (1)",
    ],
)
def test_python_stays_python(text: str) -> None:
    assert _texts(f"```python\n{text}\n```\n") == []


def test_prompts_in_a_transcript() -> None:
    text = "```console\n$ torchrun \\\n>   a.py\noutput $ 5\n(env) me@host:~$ ls\n```\n"
    assert _texts(text) == ["torchrun \\\n  a.py\nls"] or _texts(text) == ["torchrun \\\na.py\nls"]


def test_lists_and_quotations() -> None:
    assert _texts("1. a\n   ```bash\n   torchrun \\\n     a.py\n   ```\n") == ["torchrun \\\n  a.py"]
    assert _texts("> ```bash\n> torchrun a.py\n> ```\n> b\n") == ["torchrun a.py"]
    assert _texts("> ```bash\n> torchrun a.py\nb\n") == ["torchrun a.py"]


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert _texts("````md\n```bash\ntorchrun a.py\n```\n````\n") == []


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        ("accelerate launch train.py --lr 1", True),
        ("CUDA_VISIBLE_DEVICES=0 torchrun train.py", True),
        ("llamafactory-cli train a.yaml", True),
        ("python train.py --lr 1", True),
        ("accelerate launch", False),
        ("accelerate config", False),
        ("torchrun", False),
        ("python", False),
        ("train.py --lr 1", False),
    ],
)
def test_inline_code(code: str, taken: bool) -> None:
    assert _texts(f"Run `{code}` now.\n") == ([code] if taken else [])


def test_restructured_text() -> None:
    text = (
        "A::\n\n   torchrun a.py \\\n     --lr 1\n\n"
        ".. code-block:: bash\n   :linenos:\n\n   python b.py --c\n\n.. code:: python\n\n   torchrun\n"
    )
    assert _texts(text, "rst") == ["torchrun a.py \\\n  --lr 1", "python b.py --c"]


def test_places_lead_back() -> None:
    source = Source("x.md", "- a\n  ```sh\n  torchrun \\\r\n    a.py\n  ```\n", "markdown")
    (excerpt,) = excerpts(source)
    at = excerpt.text.index("a.py")
    assert source.slice(excerpt.locate(at, at + 4)) == "a.py"
    assert "\r" not in excerpt.text


def test_a_byte_order_mark_is_left_out() -> None:
    (excerpt,) = of_shell_file(Source("x.sh", "\ufeffls", "shell"))
    assert excerpt.text == "ls"
    assert excerpt.locate(0, 2) == (1, 3)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "```",
                "~~~",
                "`",
                "\n",
                " ",
                ">",
                "- ",
                "bash",
                "python a.py",
                "$ ",
                "\\",
                "\t",
                "::",
                ".. code-block:: sh",
                "\r",
            ]
        ),
        max_size=25,
    ).map("".join),
    st.sampled_from(["markdown", "rst"]),
)
def test_any_document_can_be_read(text: str, kind: str) -> None:
    source = Source("x.md", text, kind)
    for excerpt in excerpts(source):
        span = excerpt.locate(0, len(excerpt.text))
        assert 0 <= span.start <= span.end <= len(text)
