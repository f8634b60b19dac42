"""Regular expressions that are compiled when they are first used.

Compiling is slow, and one run needs few of the patterns that its modules hold. To type
checkers :func:`pattern` is ``re.compile``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

__all__ = ["pattern"]

if TYPE_CHECKING:
    from re import compile as pattern
else:

    class _Pattern:
        def __init__(self, text: str, flags: int) -> None:
            self._text = text
            self._flags = flags

        def __getattr__(self, name: str) -> Any:
            # Only reached for what is not set yet: the next use of the same method finds it at once.
            found = getattr(re.compile(self._text, self._flags), name)
            setattr(self, name, found)
            return found

        def __repr__(self) -> str:
            return f"pattern({self._text!r})"

    def pattern(text: str, flags: int = 0) -> Any:
        """A regular expression with the methods and attributes of a compiled one."""
        return _Pattern(text, flags)
