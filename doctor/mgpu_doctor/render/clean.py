"""Text from files, commands and logs, made safe to show: no terminal escapes, no secrets."""

from __future__ import annotations

import re

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_PICTURES[0x7F] = "\u2421"
# C1 controls are escapes too; the bidirectional controls make text look like what it is not.
_PICTURES.update(dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"))
# A lone surrogate (undecodable byte) cannot be written to the terminal.
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")

_SECRET_NAME = r"[A-Za-z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)"
_secret_name = re.compile(_SECRET_NAME + r"(?:_ID)?\Z", re.IGNORECASE)
_SECRET_TEXT = (
    r"(?P<before>(?<![A-Za-z0-9_])"
    + _SECRET_NAME
    + r"(?:=|:\s|\s(?=hf_))[\"']?)(?P<value>[^\s\"'$;&|)]+)|(?P<token>\b(?:hf_|sk-|ghp_|glpat-)[A-Za-z0-9_-]{16,})"
)


def clean(text: str) -> str:
    """The text with every control character but tab and newline shown as a picture of itself.

    Each character stays one character, so offsets into the text stay true.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_PICTURES | _SURROGATES if _has_surrogates(text) else _PICTURES)


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody else's business."""
    return _secret_name.match(name) is not None


def mask(text: str) -> str:
    """The text with the values of secret-looking variables and tokens replaced by asterisks, of the same length."""
    lowered = text.lower()
    if not any(hint in lowered for hint in ("token", "secret", "passw", "key", "credential", "hf_", "sk-", "gh", "gl")):
        return text
    return re.sub(_SECRET_TEXT, _asterisks, text, flags=re.IGNORECASE)


def shown(text: str) -> str:
    """Text as people may see it: cleaned and masked, of the same length."""
    return mask(clean(text))


def one_line(text: str) -> str:
    """Text as people may see it, on one line."""
    return " ".join(shown(text).split())


def _asterisks(match: re.Match[str]) -> str:
    if match["token"] is not None:
        return "*" * len(match["token"])
    value = match["value"]
    return match["before"] + "*" * len(value)


def _has_surrogates(text: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in text)
