from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.render.clean import clean, is_private, mask, one_line, shown


@given(st.text(st.characters()))
def test_nothing_a_terminal_obeys_survives_and_offsets_stay(text: str) -> None:
    result = clean(text)
    assert len(result) == len(text)
    assert not any(ord(c) < 0x20 and c not in "\t\n" for c in result)
    assert not any(0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in result)
    result.encode("utf-8")


@given(st.text(st.characters()))
def test_masking_keeps_the_length(text: str) -> None:
    assert len(mask(text)) == len(text)


def test_a_lone_surrogate_can_be_written() -> None:
    assert clean("a\udcffb") == "a?b"


def test_secrets_are_masked_and_the_rest_is_not() -> None:
    assert mask("HF_TOKEN=hf_abc torchrun") == "HF_TOKEN=****** torchrun"
    assert mask("export WANDB_API_KEY='abc'") == "export WANDB_API_KEY='***'"
    assert mask("login --token hf_ABCDEFGHIJKLMNOPQRSTUV") == "login --token " + "*" * 25
    assert mask("X_SECRET=$FROM_ELSEWHERE") == "X_SECRET=$FROM_ELSEWHERE"
    for harmless in (
        "--max_new_tokens=512",
        "tokenizers=0.21",
        "CUDA_VISIBLE_DEVICES=0",
        "key=value",
        "TOKENIZERS_PARALLELISM=0",
        "HF_DATASETS_OFFLINE is set in this shell only",
        "hf_model_name_or_path_of_the_base=x",
    ):
        assert mask(harmless) == harmless


def test_private_names() -> None:
    assert is_private("HF_TOKEN")
    assert is_private("AWS_SECRET_ACCESS_KEY")
    assert is_private("AWS_ACCESS_KEY_ID")
    assert not is_private("CUDA_VISIBLE_DEVICES")
    assert not is_private("TOKENIZERS_PARALLELISM")


def test_one_line_joins_lines() -> None:
    assert one_line("a\n  b\t c\x1b") == "a b c␛"
    assert shown("a\nb") == "a\nb"
