"""From a run's output to the lines that give its failure away, streaming: a gigabyte takes seconds and no memory.

Only lines that hold one of a few telling words are looked at; every signature's line holds one (tested), so that
most of a log is passed over by a search for bytes.
"""

from __future__ import annotations

from mgpu_doctor.logs.causes import Known, known_causes
from mgpu_doctor.logs.reader import read_log, telling_words
from mgpu_doctor.logs.scan import TELLING

__all__ = ["TELLING", "Known", "known_causes", "read_log", "telling_words"]
