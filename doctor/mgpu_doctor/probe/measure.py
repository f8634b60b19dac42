"""The probe itself, stage by stage: who is there, on which device, how fast, and do they reach each other.

Identity, and the work on each device, come before the process group, so that a group that does not form hides neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen, StageSeen
from mgpu_doctor.probe import guard
from mgpu_doctor.probe.evidence import error_line, nccl_transports, parsed_dump, short_frames, signal_name
from mgpu_doctor.probe.session import Peer, Session, whole
from mgpu_doctor.probe.start import Start

LAUNCHER = 1
"""The launch's number with the guard; repeated workers count from here."""

MOST_LINKED = 8
"""Ranks up to which every pair is measured."""

LIMITS: Mapping[str, float] = {
    "start": 180,
    "identity": 180,
    "device": 40,
    "solo": 10,
    "together": 10,
    "group": 20,
    "collective": 25,
    "links": 6,
}
"""Seconds after which a stage counts as hung (``solo``: each rank, ``links``: each pair); less as time runs out."""

_SHARES = {"start": 0.75, "identity": 0.75, "collective": 0.4}
"""Part of the time that is left that a stage may take; a half where none is named."""

MOST_MISSING = 64
GPU_BYTES, CPU_BYTES = 64 << 20, 4 << 20
GPU_LINK_BYTES, CPU_LINK_BYTES = 32 << 20, 1 << 20
GIB = 1 << 30

CURES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "nccl": ({"NCCL_P2P_DISABLE": "1"}, {"NCCL_SHM_DISABLE": "1"}, {"NCCL_IB_DISABLE": "1"})
}
"""By backend, the settings under which a collective that hangs or sums wrongly is tried again, each alone."""

_SETTLED = 0.3
_STAGES = ("device", "solo", "together", "group", "collective", "links")


class Group:
    """Processes that were told to meet at one place; one that was told nothing is a group of its own."""

    def __init__(self, peers: list[Peer], world: int | None) -> None:
        self.peers = peers
        self.world = world

    @property
    def alone(self) -> bool:
        """Whether its one process was told of no group."""
        return self.world is None

    @property
    def complete(self) -> bool:
        """Whether every rank of it is there."""
        return self.world is None or len({peer.rank for peer in self.peers}) >= self.world

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that never came."""
        if self.world is None:
            return ()
        there = {peer.rank for peer in self.peers}
        return tuple(rank for rank in range(min(self.world, MOST_MISSING)) if rank not in there)


def groups_of(peers: Iterable[Peer]) -> list[Group]:
    """Processes by the group that they were told to form.

    Two launchers that were given the same place are told apart by their ranks, which then come twice, and by parents.
    """
    by_place: dict[tuple[str | None, str | None, int], list[Peer]] = {}
    alone: list[Group] = []
    for peer in peers:
        world = whole(peer.told.get("WORLD_SIZE"))
        if world is None or peer.rank is None:
            alone.append(Group([peer], None))
        else:
            place = (peer.told.get("MASTER_ADDR"), peer.told.get("MASTER_PORT"), world)
            by_place.setdefault(place, []).append(peer)
    groups = []
    for place, members in by_place.items():
        world = place[2]
        if len({peer.rank for peer in members}) == len(members):
            groups.append(Group(members, world))
            continue
        by_parent: dict[int, list[Peer]] = {}
        for peer in members:
            by_parent.setdefault(int(peer.hello.get("ppid", 0)), []).append(peer)
        groups.extend(Group(family, world) for family in by_parent.values())
    return groups + alone


class Measurement:
    """One run of the probe over an open session."""

    def __init__(
        self,
        session: Session,
        start: Start,
        facts: Facts,
        progress: Callable[[str], None],
        cures: Mapping[str, tuple[Mapping[str, str], ...]] = CURES,
        limits: Mapping[str, float] = LIMITS,
    ) -> None:
        self.session = session
        self.start = start
        self.facts = facts
        self.progress = progress
        self.cures = cures
        self.limits = limits
        self.began = time.monotonic()
        self.stages: list[StageSeen] = []
        self.notes = list(start.notes)
        self.peers: list[Peer] = []
        self.groups: list[Group] = []
        self.solo: dict[int, float] = {}
        self.together: dict[int, float] = {}
        self.backend: str | None = None
        self.sums: tuple[float, ...] | None = None
        self.expected: float | None = None
        self.bandwidth: float | None = None
        self.links: tuple[LinkSeen, ...] = ()
        self.bad_pairs: tuple[tuple[int, int], ...] = ()
        self.cured_by: str | None = None
        self.exit_code: int | None = None
        self.launcher_error: str | None = None
        self.ids = LAUNCHER

    def run(self) -> Observation:
        """All stages, as far as one makes the next possible; those that are not reached are not in the observation."""
        if self._start() and self._identity():
            self._measure()
        self.exit_code = self.session.ended.get(LAUNCHER)
        if self._unsettled():
            from mgpu_doctor.probe.search import Search

            Search(self).run()
        return self._observation()

    def _measure(self) -> None:
        steps = (self._device, self._solo, self._together, self._group, self._collective, self._links)
        for name, step in zip(_STAGES, steps, strict=True):
            if self._died() or not self._usable():
                return
            if self.session.left <= 0:
                self._record(name, "skipped", time.monotonic(), detail="the probe's time was over")
                continue
            self.progress(name)
            step()
        if not self._died():
            self._end()

    def _unsettled(self) -> bool:
        """Whether the collective went wrong in a way that is worth another look."""
        return any(
            stage.name == "collective" and stage.state in ("hung", "failed") and not self._died()
            for stage in self.stages
        )

    def _died(self) -> list[Peer]:
        """Those that ended without being asked."""
        return [peer for peer in self.peers if peer.gone and not peer.said_bye]

    def _usable(self) -> list[Peer]:
        return [peer for peer in self.peers if not peer.gone and not peer.hung and peer.ready]

    # Stages.

    def _start(self) -> bool:
        began = time.monotonic()
        session = self.session
        self.progress("start")
        session.start(LAUNCHER, self.start.argv, self.start.environment, self.start.directory)
        session.pump(lambda: bool(session.peers) or self._launcher_ended(), self._limit("start"))
        if not session.peers and self._launcher_ended():
            # What it wrote last, and a worker that was just starting, may still be on their way.
            session.pump(lambda: bool(session.peers), _SETTLED)
        if session.peers:
            self._record("start", "ok", began)
            return True
        if self._launcher_ended():
            self.launcher_error = session.missing.get(LAUNCHER) or error_line(session.output())
            detail = "the launcher could not be started" if LAUNCHER in session.missing else self._ended_detail()
            self._record("start", "failed", began, detail=detail)
        else:
            waited = time.monotonic() - began
            self._record("start", "hung", began, detail=f"the launcher started no process of the job in {waited:.0f} s")
        return False

    def _ended_detail(self) -> str:
        status = self.session.ended.get(LAUNCHER, 0)
        how = f"was ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"the launcher {how} before it started a process of the job"

    def _launcher_ended(self) -> bool:
        return LAUNCHER in self.session.ended or LAUNCHER in self.session.missing

    def _identity(self) -> bool:
        began = time.monotonic()
        session = self.session
        self.progress("identity")
        patience = max(5.0, 2 * (began - self.began))
        watch = _Arrivals(session, self.start.promised, patience, self._launcher_ended)
        session.pump(watch.complete, self._limit("identity"))
        self.peers = list(session.peers)
        self.groups = groups_of(self.peers)
        session.pump(lambda: all(p.answer or p.gone for p in self.peers), self._limit("identity"))
        slow = [peer for peer in self.peers if not peer.answer and not peer.gone]
        failed = [peer for peer in self.peers if peer.error is not None]
        absent = [rank for group in self.groups for rank in group.missing]
        if slow:
            self._stacks(slow)
            waited = time.monotonic() - began
            self._record("identity", "hung", began, slow, detail=f"{slow[0].at} did not return in {waited:.0f} s")
        elif self._died():
            state, bad, detail = self._broken(self.peers)
            self._record("identity", state, began, bad, detail=detail)
        elif failed:
            self._record("identity", "failed", began, failed, detail=failed[0].error or "")
        elif absent:
            there = len(self.peers)
            world = next(group.world for group in self.groups if group.missing)
            detail = f"{there} of {world} ranks came; the others were never started on this machine"
            self._record("identity", "failed", began, absent=absent, detail=detail)
        else:
            self._record("identity", "ok", began)
        self._note_devices()
        return bool(self._usable()) and not self._died()

    def _note_devices(self) -> None:
        """What the processes found odd about their devices."""
        for peer in self._usable():
            devices = peer.seen.get("devices") or ()
            if peer.ready.get("wrapped"):
                count, index = len(devices) or peer.ready.get("count", 0), peer.ready.get("index")
                local = peer.told.get("LOCAL_RANK")
                self.notes.append(
                    f"Local rank {local} has no device of its own, {count} being visible: it takes cuda:{index}, as"
                    " accelerate does. A program that selects cuda:LOCAL_RANK itself stops with"
                    ' "invalid device ordinal".'
                )
            elif peer.ready.get("cuda_error") and not self.session.cpu:
                what = f"shows {len(devices)} devices" if devices else f"says {peer.seen.get('driver_error')}"
                self.notes.append(
                    f"The CUDA driver {what} to rank {self.number(peer)}, and torch {peer.ready.get('torch')} cannot"
                    f" use the GPU: {peer.ready.get('cuda_error')}"
                )

    def _device(self) -> None:
        self._ask("device", [(peer, {"do": "device"}) for peer in self._usable()], self._limit("device"))

    def _solo(self) -> None:
        began = time.monotonic()
        times = self._times()
        for peer in self._fit():
            state, bad, detail = self._put("solo", [(peer, {"do": "solo", **times})], self._limit("solo"))
            if state != "ok":
                self._record("solo", state, began, bad, detail=detail)
                return
            if peer.answer is not None:
                self.solo[peer.pid] = float(peer.answer["ms"])
        self._record("solo", "ok", began)

    def _together(self) -> None:
        began = time.monotonic()
        peers = self._fit()
        if len(peers) < 2:
            self._record("together", "skipped", began, detail="there is one process")
            return
        times = self._times()
        limit = self._limit("together")
        state, bad, detail = self._put("together", [(peer, {"do": "arm", **times}) for peer in peers], limit)
        if state == "ok":
            state, bad, detail = self._put("together", [(peer, {"do": "together", **times}) for peer in peers], limit)
        if state == "ok":
            self.together = {peer.pid: float(peer.answer["ms"]) for peer in peers if peer.answer is not None}
        self._record("together", state, began, bad, detail=detail)

    def _limit(self, name: str) -> float:
        """Seconds that a stage may take now."""
        return min(self.limits[name], self.session.left * _SHARES.get(name, 0.5))

    def _times(self) -> dict[str, float]:
        """How long is warmed up, and measured: a GPU needs some time to raise its clocks."""
        return {"warm": 0.1, "seconds": 0.15} if self.on_gpu else {"warm": 0.01, "seconds": 0.03}

    def _fit(self) -> list[Peer]:
        """Those whose device works."""
        return [peer for peer in self._usable() if peer.error is None]

    @property
    def on_gpu(self) -> bool:
        """Whether every process works on a GPU; where none came so far, whether it would."""
        ready = [peer for peer in self.peers if peer.ready]
        if ready:
            return all(peer.ready.get("cuda_ok") for peer in ready)
        return not self.session.cpu and not isinstance(self.facts.gpus, Unknown) and bool(self.facts.gpus)

    def _group(self) -> None:
        began = time.monotonic()
        told = [group for group in self.groups if not group.alone]
        if not told:
            each = "the process was" if len(self.groups) == 1 else f"each of the {len(self.groups)} processes was"
            detail = f"{each} told of no group and believes that it is alone"
            self._record("group", "skipped", began, detail=detail)
            return
        broken = [group for group in told if not group.complete]
        if broken:
            detail = f"{len(broken[0].peers)} of {broken[0].world} ranks are there: the group cannot form"
            self._record("group", "failed", began, [p for g in broken for p in g.peers], detail=detail)
            return
        usable = self._usable()
        lost = [peer for group in told for peer in group.peers if peer not in usable]
        if lost:
            self._record("group", "skipped", began, detail=f"rank {self.number(lost[0])} did not come so far")
            return
        orders = []
        for group in told:
            self.backend, why = self._backend_of(group)
            order = {"do": "group", "backend": self.backend, "loopback": bool(why)}
            orders += [(peer, order) for peer in group.peers]
        state, bad, detail = self._put("group", orders, self._limit("group"))
        self._record("group", state, began, bad, detail=detail or self._backend_of(told[0])[1])

    def _backend_of(self, group: Group) -> tuple[str, str]:
        """Who is to do the collectives of a group, and why it is not the usual one (empty when it is)."""
        if not all(peer.ready.get("cuda_ok") for peer in group.peers):
            return "gloo", ""
        if not all(peer.ready.get("has_nccl") for peer in group.peers):
            return "gloo", "this torch has no NCCL"
        # NCCL tells devices by their place on the PCI bus (init.cc, "Duplicate GPU detected"), so that two MIG
        # instances of one GPU count as one as well.
        for told in (self._uuid, lambda peer: self._device_of(peer).get("bus")):
            known = [name for peer in group.peers if isinstance(name := told(peer), str)]
            if len(set(known)) < len(known):
                return "gloo", "NCCL refuses two ranks on one device, so gloo stood in for it"
        return "nccl", ""

    def _collective(self) -> None:
        began = time.monotonic()
        # A group of one is worth it too: it shows that NCCL can work with this GPU and driver.
        formed = [group for group in self.groups if not group.alone and group.complete]
        if not formed or not self._stage_ok("group"):
            self._record("collective", "skipped", began, detail="no group formed")
            return
        if self.on_gpu and self.backend == "gloo":
            detail = f"{self._backend_of(formed[0])[1]}: there is nothing to measure"
            self._record("collective", "skipped", began, detail=detail)
            return
        size = GPU_BYTES if self.on_gpu else CPU_BYTES
        orders = [(peer, {"do": "collective", "bytes": size}) for group in formed for peer in group.peers]
        state, bad, detail = self._put("collective", orders, self._limit("collective"))
        if state == "ok":
            state, bad, detail = self._sums(formed)
        self._record("collective", state, began, bad, detail=detail)

    def _sums(self, formed: list[Group]) -> tuple[str, list[Peer], str]:
        group = formed[0]
        members = sorted(group.peers, key=lambda peer: peer.rank or 0)
        answers = [peer.answer or {} for peer in members]
        world = len(members)
        self.expected = world * (world + 1) / 2
        self.sums = tuple(float(answer["measured"]) for answer in answers)
        slowest = max(float(answer["seconds"]) for answer in answers)
        if slowest > 0 and len(formed) == 1 and world > 1:
            self.bandwidth = float(answers[0]["bytes"]) / slowest * 2 * (world - 1) / world / GIB
        wrong = []
        for formed_group in formed:
            expected = len(formed_group.peers) * (len(formed_group.peers) + 1) / 2
            wrong += [peer for peer in formed_group.peers if float((peer.answer or {})["measured"]) != expected]
        if wrong:
            return "failed", wrong, "all_reduce gave a wrong sum"
        return "ok", [], ""

    def _stage_ok(self, name: str) -> bool:
        return any(stage.name == name and stage.state == "ok" for stage in self.stages)

    def _links(self) -> None:
        began = time.monotonic()
        formed = [group for group in self.groups if not group.alone and group.complete]
        if not self._stage_ok("collective") or len(formed) != 1:
            self._record("links", "skipped", began, detail="no working group to measure in")
            return
        members = sorted(formed[0].peers, key=lambda peer: peer.rank or 0)
        if len(members) < 2:
            self._record("links", "skipped", began, detail="there is one process")
            return
        if len(members) > MOST_LINKED:
            detail = f"{len(members)} ranks: pairs are measured up to {MOST_LINKED}"
            self._record("links", "skipped", began, detail=detail)
            return
        speeds: dict[tuple[int, int], float] = {}
        limit = time.monotonic() + min(15, self.session.left / 2)
        size = GPU_LINK_BYTES if self.on_gpu else CPU_LINK_BYTES
        state, bad, detail = "ok", list[Peer](), ""
        for a, b in combinations(range(len(members)), 2):
            if time.monotonic() > limit:
                detail = f"{len(speeds)} pairs were measured, then the time was over"
                break
            order = {"do": "link", "a": a, "b": b, "bytes": size, "times": 10 if self.on_gpu else 3}
            state, bad, detail = self._put("links", [(members[a], order), (members[b], order)], self._limit("links"))
            if state != "ok":
                break
            answer = members[b].answer or {}
            if answer.get("seconds"):
                speeds[a, b] = answer["bytes"] / answer["seconds"] / GIB
        self.links = self._seen_links(members, speeds)
        self._record("links", state, began, bad, detail=detail)

    def _seen_links(self, members: list[Peer], speeds: dict[tuple[int, int], float]) -> tuple[LinkSeen, ...]:
        directory = self.session.directory
        ways = nccl_transports(os.path.join(directory, f"nccl.{peer.pid}") for peer in members)
        unknown = Unknown("it was not measured")
        silent = Unknown("NCCL named no way between them" if self.backend == "nccl" else "NCCL did not run")
        return tuple(
            LinkSeen(
                a,
                b,
                self._peer_access(members[a], members[b]),
                speeds.get((a, b), unknown),
                ways.get((a, b)) or ways.get((b, a)) or silent,
            )
            for a, b in combinations(range(len(members)), 2)
        )

    def _peer_access(self, one: Peer, other: Peer) -> bool | Unknown:
        wanted = {self._uuid(one), self._uuid(other)}
        for peer in (one, other):
            places = {device.get("uuid"): device["index"] for device in peer.seen.get("devices") or ()}
            pair = sorted(places[uuid] for uuid in wanted if uuid in places)
            for a, b, can in peer.ready.get("peers") or ():
                if [a, b] == pair:
                    return bool(can)
        return Unknown("neither process sees both devices" if self.on_gpu else "there is no device")

    def _end(self) -> None:
        began = time.monotonic()
        session = self.session
        peers = self._usable()
        whole_and_well = len(peers) == len(self.peers)
        for peer in peers:
            session.tell(peer, {"do": "end"})
        session.pump(lambda: all(peer.said_bye or peer.gone for peer in peers), min(3, session.left))
        if whole_and_well:
            session.pump(lambda: LAUNCHER in session.ended, min(1.5, session.left))
        late = [peer for peer in peers if not peer.said_bye]
        if session.ended.get(LAUNCHER) and all(stage.state in ("ok", "skipped") for stage in self.stages) and not late:
            self.launcher_error = error_line(session.output())
        if late:
            state, bad, detail = self._broken(late) if self._died() else ("hung", late, "it did not end when asked")
            self._record("end", state, began, bad, detail=detail)
        else:
            self._record("end", "ok", began)

    # What the stages are made of.

    def _ask(self, name: str, orders: list[tuple[Peer, dict[str, Any]]], seconds: float) -> None:
        began = time.monotonic()
        state, bad, detail = self._put(name, orders, seconds)
        self._record(name, state, began, bad, detail=detail)

    def _put(self, name: str, orders: list[tuple[Peer, dict[str, Any]]], seconds: float) -> tuple[str, list[Peer], str]:
        """Give orders and wait; the state, who is to blame, and what happened."""
        session = self.session
        peers = [peer for peer, _ in orders]
        for peer, order in orders:
            peer.stage = name
            peer.at = ""
            session.tell(peer, order)

        def settled() -> bool:
            return all(peer.answer is not None or peer.gone for peer in peers)

        def broken() -> bool:
            return bool(self._died()) or any((peer.answer or {}).get("kind") == "failed" for peer in peers)

        session.pump(lambda: settled() or broken(), seconds)
        if broken():
            # Others may have failed as well; those that wait for the first one have no fault.
            session.pump(settled, _SETTLED)
            return self._broken(peers)
        if settled():
            return "ok", [], ""
        return self._hung(peers)

    def _broken(self, peers: list[Peer]) -> tuple[str, list[Peer], str]:
        dead = self._died()
        if dead:
            # Launchers end the others with SIGTERM as soon as one is gone.
            first = min(dead, key=lambda peer: (peer.signal == signal.SIGTERM, peer.gone_at))
            bad = [peer for peer in dead if peer is first or peer.signal not in (None, signal.SIGTERM)]
            return "failed", bad, _death(first)
        bad = [peer for peer in peers if (peer.answer or {}).get("kind") == "failed"]
        return "failed", bad, bad[0].error or ""

    def _hung(self, peers: list[Peer]) -> tuple[str, list[Peer], str]:
        late = [peer for peer in peers if peer.answer is None and not peer.gone]
        self._stacks(late)
        # Those that never came to the place where all have to meet are the ones that the others wait for.
        absent = [peer for peer in late if peer.at != "all_reduce"]
        if absent and len(absent) < len(late):
            waiting = len(late) - len(absent)
            return "hung", absent, f"{waiting} rank{'s wait' if waiting > 1 else ' waits'} for the others"
        some = f"{len(late)} rank{'s' * (len(late) > 1)} did not return"
        return "hung", late, "no rank returned" if len(late) == len(peers) else some

    def _stacks(self, peers: list[Peer]) -> None:
        """Where processes stand that do not answer: they say it, or the interpreter's signal handler does."""
        session = self.session
        for peer in peers:
            peer.hung = True
            with contextlib.suppress(OSError):
                peer.line.send(b'{"do": "stack"}\n')
        session.pump(lambda: all(peer.frames or peer.gone for peer in peers), 1)
        dumb = [peer for peer in peers if not peer.frames and not peer.gone]
        for peer in dumb:
            with contextlib.suppress(OSError):
                os.kill(peer.pid, signal.SIGUSR1)
        dumps = {peer: os.path.join(session.directory, f"stack.{peer.pid}") for peer in dumb}
        session.pump(lambda: all(_size(path) > 0 for path in dumps.values()), 0.5)
        for peer, path in dumps.items():
            peer.frames = parsed_dump(path)

    def _record(
        self,
        name: str,
        state: str,
        began: float,
        bad: Iterable[Peer] = (),
        *,
        absent: Iterable[int] = (),
        detail: str = "",
    ) -> None:
        ranks = tuple(sorted({*(self.number(peer) for peer in bad), *absent}))
        self.stages.append(StageSeen(name, state, round(time.monotonic() - began, 3), ranks, detail))
        if state not in ("ok", "skipped"):
            self.progress(f"{name}: {state}" + (f": {detail}" if detail else ""))

    def number(self, peer: Peer) -> int:
        """A process's rank, or its place among the processes where it was told none."""
        return peer.rank if peer.rank is not None else self.peers.index(peer)

    # What was seen, in the model's words.

    def _observation(self) -> Observation:
        ranks = tuple(self._rank_seen(peer) for peer in sorted(self.peers, key=self._order))
        missing = tuple(
            RankSeen(rank, world_size=group.world or 0, state="missing", stage="start")
            for group in self.groups
            for rank in group.missing
        )
        not_run = Unknown("no collective was run")
        return Observation(
            kind="probe",
            command=self.start.shown,
            ranks=ranks + missing,
            promised_processes=self.start.promised,
            promised_uuids=self.start.promised_uuids,
            on_gpu=self.on_gpu,
            backend=self.backend or Unknown("no group formed"),
            stages=tuple(self.stages),
            sum_expected=not_run if self.expected is None else self.expected,
            sum_measured=not_run if self.sums is None else self.sums,
            all_reduce_gib_per_s=Unknown("it was not measured") if self.bandwidth is None else self.bandwidth,
            links=self.links,
            idle_uuids=self._idle(),
            bad_pairs=self.bad_pairs,
            cured_by=self.cured_by,
            seconds=round(time.monotonic() - self.began, 3),
            launcher_exit_code=self.exit_code,
            launcher_error=self.launcher_error,
            output=self.session.output(),
            versions=self._versions(),
            notes=tuple(self.notes),
        )

    def _order(self, peer: Peer) -> tuple[int, int, int]:
        group = next((n for n, g in enumerate(self.groups) if peer in g.peers), 0)
        return (group, peer.rank if peer.rank is not None else 0, peer.pid)

    def _rank_seen(self, peer: Peer) -> RankSeen:
        told = peer.told
        untold = Unknown("its launcher told it none")
        device = self._device_of(peer)
        index = peer.ready.get("index", peer.seen.get("index"))
        if peer.ready and not peer.ready.get("cuda_ok"):
            index = None
        rank, local, world = (whole(told.get(name)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        address, port = told.get("MASTER_ADDR"), told.get("MASTER_PORT")
        count = len(peer.seen["devices"]) if "devices" in peer.seen else peer.ready.get("count", 0)
        return RankSeen(
            rank=untold if rank is None else rank,
            local_rank=untold if local is None else local,
            world_size=untold if world is None else world,
            pid=peer.pid,
            host=str(peer.hello.get("host")),
            visible=told.get("CUDA_VISIBLE_DEVICES"),
            device_count=count,
            device_index=index,
            device_name=peer.ready.get("name") or device.get("name") or Unknown("it works on no GPU"),
            uuid=self._uuid(peer),
            pci_bus_id=device.get("bus") or Unknown("it works on no GPU"),
            physical_index=self._physical(peer),
            master=f"{address}:{port}" if address is not None or port is not None else None,
            state=self._state(peer),
            stage=peer.failed_in or peer.stage,
            exit_code=peer.exit_code if peer.gone and not peer.said_bye else None,
            signal=signal_name(peer.signal) if peer.signal is not None else None,
            error=peer.error,
            stack=short_frames(peer.frames, self.session.directory) if peer.hung else (),
            solo_ms=self.solo.get(peer.pid, Unknown("it was not measured")),
            together_ms=self.together.get(peer.pid, Unknown("it was not measured")),
        )

    def _state(self, peer: Peer) -> str:
        if peer.error is not None:
            return "failed"
        if peer.hung:
            return "hung"
        if peer.gone and not peer.said_bye and any(self.number(peer) in stage.ranks for stage in self.stages):
            return "killed" if peer.signal is not None or peer.exit_code is None else "failed"
        return "done"

    def _device_of(self, peer: Peer) -> Mapping[str, Any]:
        index = peer.ready.get("index", peer.seen.get("index"))
        for device in peer.seen.get("devices") or ():
            if device["index"] == index:
                found: Mapping[str, Any] = device
                return found
        return {}

    def _uuid(self, peer: Peer) -> str | Unknown | None:
        if peer.ready and not peer.ready.get("cuda_ok"):
            return None
        uuid = self._device_of(peer).get("uuid")
        if isinstance(uuid, str):
            return uuid
        if peer.ready.get("torch_uuid"):
            return f"GPU-{peer.ready['torch_uuid']}"
        if self.session.cpu:
            return None
        return Unknown("neither the driver nor torch told it")

    def _physical(self, peer: Peer) -> int | Unknown:
        uuid = self._uuid(peer)
        if not isinstance(uuid, str):
            return Unknown("it works on no GPU")
        if not isinstance(self.facts.gpus, Unknown):
            for gpu in self.facts.gpus:
                instances = () if isinstance(gpu.mig, Unknown) else gpu.mig
                if _bare(uuid) in [_bare(known) for known in (gpu.uuid, *instances) if isinstance(known, str)]:
                    return gpu.index
        return Unknown("no inventory of GPUs holds its UUID")

    def _idle(self) -> tuple[str, ...] | Unknown:
        if not self.on_gpu:
            return Unknown("the processes do not work on GPUs")
        seen = {device.get("uuid"): None for peer in self.peers for device in peer.seen.get("devices") or ()}
        used = {self._uuid(peer) for peer in self.peers}
        if not seen or None in seen or any(isinstance(uuid, Unknown) for uuid in used):
            return Unknown("not every device could be told by its UUID")
        return tuple(str(uuid) for uuid in seen if uuid not in used)

    def _versions(self) -> dict[str, str]:
        for peer in self.peers:
            found = {"python": peer.hello.get("python")}
            found.update({name: peer.ready.get(name) for name in ("torch", "nccl", "cuda")})
            if peer.ready:
                return {name: str(value) for name, value in found.items() if value}
        return {"python": str(self.peers[0].hello["python"])} if self.peers else {}


class _Arrivals:
    """Whether all the processes that will come have come."""

    def __init__(self, session: Session, promised: int | Unknown, patience: float, ended: Callable[[], bool]) -> None:
        self.session = session
        self.promised = promised
        self.patience = patience
        self.ended = ended
        self.count = 0
        self.changed = time.monotonic()
        self.quiet: float | None = None

    def complete(self) -> bool:
        """Ask again and again; the answer may take a look at the process tree."""
        peers, now = self.session.peers, time.monotonic()
        if len(peers) != self.count:
            self.count, self.changed, self.quiet = len(peers), now, None
        groups = groups_of(peers)
        full = all(group.complete for group in groups)
        if full and self.promised == len(peers):
            return True
        if any(peer.gone for peer in peers):
            return now - self.changed > _SETTLED
        if self.ended() or not self._pending():
            self.quiet = self.quiet if self.quiet is not None else now
            return now - self.quiet > (_SETTLED if full else 3 * _SETTLED)
        self.quiet = None
        return full and now - self.changed > self.patience

    def _pending(self) -> bool:
        """Whether a process without children has not said hello: it may be, or become, a worker."""
        tree = guard.parents()
        ours = guard.descendants(self.session.guard_pid, tree)
        busy = {tree[pid] for pid in ours}
        known = {peer.pid for peer in self.session.peers}
        return any(pid not in busy and pid not in known for pid in ours)


def _death(peer: Peer) -> str:
    if peer.signal is not None:
        return f"a process was ended by {signal_name(peer.signal)}"
    if peer.exit_code is not None:
        return f"a process ended with status {peer.exit_code}"
    return "a process ended"


def _bare(uuid: str) -> str:
    """A UUID without the word in front."""
    return uuid.lower().partition("-")[2]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
