"""Lines of a run's output as its programs wrote them: without colours, prefixes and overwritten progress bars.

The prefixes are those of torchrun (torch 2.6.0, elastic/multiprocessing/tail_log.py: ``[trainer0]:``, ``[default0]:``;
distributed/distributed_c10d.py, its excepthook: ``[rank0]:``), of glog as torch writes it
(``E0101 01:02:03.000 123 torch/…:12]``), of Python's logging (``ERROR:name:``) and as vLLM 0.9 formats it
(``ERROR 03-31 16:05:37 [core.py:515]``), of docker compose (``worker-1  | ``) and the journal, of Open MPI's
``--tag-output`` (``[1,0]<stderr>:``), of ``srun --label`` (``0:``) and of Ray (``(WorkerDict pid=4411)``).
"""

from __future__ import annotations

from mgpu_doctor.model.pattern import pattern

LONGEST = 4000
"""Characters of a line that are looked at; what follows says nothing new about a cause."""

_ANSI = pattern(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_RANK = pattern(
    r"\[(?:rank|default|trainer|worker|Rank )(\d+)\]:? ?|\[\d+,(\d+)\]<std(?:err|out)>: ?|(\d{1,4}): (?=\S)"
)
_STAMP = pattern(
    r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?[ :]+"
    r"|\d\d/\d\d/\d{4} \d\d:\d\d:\d\d - "
    r"|\[?[EWIF]\d{3,4} \d\d:\d\d:\d\d\.\d+ +(?:\d+ )?[\w./\\<>-]+:\d+\] ?"
    r"|\([A-Za-z_]\w*(?: pid=\d+)?(?:, ip=[\w.:]+)?\) "
    r"|(?:ERROR|WARNING|INFO|DEBUG|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]+:\d+\] ?"
    r"|(?:ERROR|WARNING|INFO|CRITICAL):[A-Za-z_][\w.]*:"
    r"|\[\d\d:\d\d:\d\d\] +(?:ERROR|WARNING|INFO|DEBUG) +"
    r"|[\w.-]+ +\| |\[pod/[\w./-]+\] "
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w.-]+(?:\[\d+\])?: "
)
_NAMED_RANK = pattern(r"\[(?:[Rr]ank ?|RANK:)(\d+)\]|\bRank (\d+)\] |\blocal_rank: (\d+)\b|^rank (\d+)\b")


def clean(raw: str) -> tuple[str, str | None]:
    """A raw line as ``(text, rank)``; the rank is None when the line names none."""
    text = raw[: LONGEST * 2].rstrip("\r\n")
    if "\r" in text:
        text = text.rpartition("\r")[2]
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    text = text[:LONGEST]
    rank = None
    while True:
        found = _RANK.match(text)
        if found is not None:
            rank = next(group for group in found.groups() if group is not None)
        else:
            found = _STAMP.match(text)
        if found is None:
            break
        text = text[found.end() :]
    if rank is None:
        named = _NAMED_RANK.search(text)
        rank = next((group for group in named.groups() if group), None) if named is not None else None
    return text.rstrip(), rank
