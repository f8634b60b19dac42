"""After a collective that hung or summed wrongly: does it happen again, what cures it, and between which ranks is it.

The launcher is ended. Workers are started again without it, in the same environment and with the same ranks, and form
groups of two or of all at addresses that the doctor gives them. All of it ends with the probe's deadline.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mgpu_doctor.probe.session import Peer
from mgpu_doctor.probe.start import LOOPBACK, free_port
from mgpu_doctor.probe.worker import ROUND_VARIABLE

if TYPE_CHECKING:
    from mgpu_doctor.probe.measure import Measurement

MOST_SEARCHED = 16
SMALL_BYTES = 1 << 20
SECONDS = {"nccl": 12.0, "gloo": 5.0}
"""By backend, how long a group may take to form and to sum, in processes that are ready."""


def tournament(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Rounds in which every pair of ``count`` ranks meets once and no rank plays twice at a time."""
    places: list[int | None] = list(range(count))
    if count % 2:
        places.append(None)
    rounds = []
    for _ in range(len(places) - 1):
        pairs = []
        for index in range(len(places) // 2):
            a, b = places[index], places[-1 - index]
            if a is not None and b is not None:
                pairs.append((min(a, b), max(a, b)))
        rounds.append(tuple(sorted(pairs)))
        places = [places[0], places[-1], *places[1:-1]]
    return tuple(rounds)


class _OutOfTimeError(Exception):
    """What is left of the probe's time is too short for an answer that means anything."""


class Search:
    """A second look, by ranks that are started again one by one."""

    def __init__(self, measurement: Measurement) -> None:
        self.of = measurement
        self.session = measurement.session
        group = next(group for group in measurement.groups if not group.alone)
        self.first = sorted(group.peers, key=lambda peer: peer.rank or 0)
        self.backend = measurement.backend or "gloo"
        self.peers: dict[int, Peer] = {}
        self.rounds: dict[int, str] = {}

    def run(self) -> None:
        """Look as long as there is time for it."""
        groups = [group for group in self.of.groups if not group.alone]
        if len(groups) > 1 or not 1 < len(self.first) <= MOST_SEARCHED:
            return
        self.of.progress("collective: another look")
        try:
            self._look()
        except _OutOfTimeError:
            self.of.notes.append("The time of the probe was over before all that could be tried had been tried.")

    def _look(self) -> None:
        """Control, then the first cure, then pairs, then the other cures."""
        self._start_all({})
        if self._all_meet():
            self.of.notes.append("The collective passed when it was repeated: the fault does not always show.")
            return
        cures = self.of.cures.get(self.backend, ())
        if cures and self._cured(cures[0]):
            return
        if len(self.first) > 2:
            self._pairs()
        for cure in cures[1:]:
            if self._cured(cure):
                return

    def _cured(self, cure: Mapping[str, str]) -> bool:
        self._start_all(cure)
        if not self._all_meet():
            return False
        self.of.cured_by = " ".join(f"{name}={value}" for name, value in cure.items())
        return True

    def _pairs(self) -> None:
        """Each pair alone. Where every pair fails the fault is in no pair."""
        self._start_all({})
        bad: list[tuple[int, int]] = []
        good = False
        for pairs in tournament(len(self.first)):
            self._wait_ready()
            met = self._meet(pairs)
            lost = [pair for pair in pairs if not met[pair]]
            good |= len(lost) < len(pairs)
            bad += lost
            if good:
                self.of.bad_pairs = tuple(sorted(bad))
            for rank in {rank for pair in lost for rank in pair}:
                self._renew(rank, {})

    def _start_all(self, extra: Mapping[str, str]) -> None:
        """Every rank anew, with some variables besides those of the command."""
        self.session.clear()
        self.peers = {}
        for rank in range(len(self.first)):
            self._start(rank, extra)
        self._wait_ready()

    def _start(self, rank: int, extra: Mapping[str, str]) -> None:
        old = self.first[rank]
        self.of.ids += 1
        environment = dict(self.of.start.environment)
        environment.update({name: value for name, value in old.told.items() if name != ROUND_VARIABLE})
        environment.update(extra)
        environment[ROUND_VARIABLE] = str(self.of.ids)
        argv = [str(old.hello["executable"]), self.session.worker]
        self.session.start(self.of.ids, argv, environment, self.of.start.directory)
        self.rounds[rank] = str(self.of.ids)

    def _renew(self, rank: int, extra: Mapping[str, str]) -> None:
        peer = self.peers.pop(rank, None)
        if peer is not None and peer.pid:
            with contextlib.suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)
        self._start(rank, extra)

    def _wait_ready(self) -> None:
        def ready() -> bool:
            by_round = {peer.told.get(ROUND_VARIABLE): peer for peer in self.session.peers if not peer.gone}
            self.peers = {rank: by_round[number] for rank, number in self.rounds.items() if number in by_round}
            return len(self.peers) == len(self.first) and all(peer.ready for peer in self.peers.values())

        if not self.session.pump(ready, self.session.left):
            raise _OutOfTimeError

    def _all_meet(self) -> bool:
        ranks = tuple(range(len(self.first)))
        return self._meet((ranks,))[ranks]

    def _meet(self, groups: tuple[tuple[int, ...], ...]) -> dict[tuple[int, ...], bool]:
        """Let groups of ranks meet, all at the same time; whether each did, with the right sum."""
        seconds = SECONDS[self.backend]
        if self.session.left < seconds:
            raise _OutOfTimeError
        asked: dict[tuple[int, ...], list[Peer]] = {}
        for ranks in groups:
            port = free_port()
            asked[ranks] = [self.peers[rank] for rank in ranks]
            for rank in ranks:
                order = {
                    "do": "regroup", "backend": self.backend, "address": LOOPBACK, "port": port, "ranks": list(ranks),
                    "rank": rank, "bytes": SMALL_BYTES, "all": len(ranks) == len(self.first),
                }  # fmt: skip
                self.session.tell(self.peers[rank], order)
        everyone = [peer for peers in asked.values() for peer in peers]
        self.session.pump(lambda: all(peer.answer or peer.gone for peer in everyone), seconds)
        return {ranks: all(_met(peer) for peer in peers) for ranks, peers in asked.items()}


def _met(peer: Peer) -> bool:
    answer = peer.answer or {}
    return answer.get("kind") == "done" and answer.get("measured") == answer.get("expected")
