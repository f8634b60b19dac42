"""Text from files, commands and logs, made safe to show: no terminal escapes, no secrets."""

from __future__ import annotations

import re

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_PICTURES[0x7F] = "\u2421"
# C1 controls are escapes too; the bidirectional controls make text look like what it is not.
_PICTURES.update(
    dict.fromkeys((*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
)

_PRIVATE_NAME = r"[A-Za-z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)(?:_ID)?"
# Hub and GitHub tokens are letters and digits: HF_DATASETS_OFFLINE and hf_model_name are names.
_PRIVATE_TEXT = (
    r"(?P<before>(?<![A-Za-z0-9_-])" + _PRIVATE_NAME + r"=[\"']?)(?P<value>[^\s\"'$;&|)`]+)"
    r"|(?P<token>\b(?-i:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{16,}|glpat-[A-Za-z0-9_-]{16,}))"
)
_HINTS = ("token", "secret", "passw", "key", "credential", "hf_", "sk-", "ghp_", "glpat-")


def clean(text: str) -> str:
    """The text with every control character but tab and newline shown as a picture of itself.

    Each character stays one character, so offsets into the text stay true.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_PICTURES)
    try:
        text.encode()
    except UnicodeEncodeError:
        # A lone surrogate (an undecodable byte of the command line) cannot be written to any terminal.
        text = text.encode("utf-8", "replace").decode()
    return text


def is_private(name: str) -> bool:
    """Whether a variable's name says that its value is nobody else's business."""
    return re.fullmatch(_PRIVATE_NAME, name, re.IGNORECASE) is not None


def mask(text: str) -> str:
    """The text with the values of secret-looking variables and tokens replaced by asterisks, of the same length."""
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    return re.sub(_PRIVATE_TEXT, _asterisks, text, flags=re.IGNORECASE)


def shown(text: str) -> str:
    """Text as people may see it: cleaned and masked, of the same length."""
    return mask(clean(text))


def one_line(text: str) -> str:
    """Text as people may see it, on one line."""
    return " ".join(shown(text).split())


def _asterisks(match: re.Match[str]) -> str:
    if match["token"] is not None:
        return "*" * len(match["token"])
    return match["before"] + "*" * len(match["value"])
