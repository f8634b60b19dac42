"""The process that stands in for the user's program: it says who and where it is, and works when it is told to.

This file is copied beside a file ``channel.json`` and run by the user's interpreter, through the user's launcher. It
needs the standard library and torch alone (Python 3.8 and torch 1.13 or newer) and imports nothing of this project. It
talks to the doctor over a socket of its own, so that it can report whatever becomes of the process group. When
that socket closes it ends at once, whatever it is doing.

``MGPU_DOCTOR_PROBE_FAULT`` injects faults, for tests of the doctor: ``ACTION:STAGE:RANK`` with
``:unless=NAME`` behind it where the fault is to go away when the variable NAME is set; several are separated by commas.
Actions: ``hang`` (wait for ever), ``block`` (wait for ever in C, holding the interpreter's lock), ``kill``
(SIGKILL itself), ``exit`` (end with status 3), ``raise``, ``wrong`` (spoil the sum), ``flood`` (write 64 MiB). Stages:
``hello``, ``driver``, ``torch``, ``group``, ``device``, ``solo``, ``together``, ``collective``, ``link``, ``end``, and
``pair-A-B`` for a group of the two ranks A and B. RANK may be ``*``.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

HERE = os.path.dirname(os.path.abspath(__file__))
TOKEN_VARIABLE = "MGPU_DOCTOR_PROBE"  # noqa: S105 - the name of a variable
FAULT_VARIABLE = "MGPU_DOCTOR_PROBE_FAULT"
ROUND_VARIABLE = "MGPU_DOCTOR_PROBE_ROUND"
TOLD = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    ROUND_VARIABLE,
)
MEBI = 1 << 20
SIDE_GPU = 4096
SIDE_CPU = 192
MOST_SECONDS = 600


class Channel:
    """The line to the doctor: one JSON object a line, both ways."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        address = settings["address"]
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(tuple(address))
        self.lock = threading.Lock()
        self.orders: queue.Queue[dict[str, Any]] = queue.Queue()
        self.main = threading.get_ident()

    def send(self, kind: str, **fields: Any) -> None:
        """Tell the doctor something; it is gone when that fails, and so are we."""
        fields["kind"] = kind
        line = (json.dumps(fields) + "\n").encode()
        try:
            with self.lock:
                self.socket.sendall(line)
        except OSError:
            leave()

    def listen(self) -> None:
        """Read orders until the line closes. Runs in a thread of its own."""
        rest = b""
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                leave()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if order["do"] == "stack":
                    self.send("stack", frames=frames_of(self.main))
                else:
                    self.orders.put(order)


def leave() -> NoReturn:
    """End now: nobody listens any more."""
    os._exit(1)


def frames_of(thread: int) -> list[str]:
    """Where a thread stands, innermost frame last: ``train.py:12 in main``."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - the documented way to another thread's frame
    found = []
    while frame is not None:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return found[::-1]


def identity() -> dict[str, Any]:
    """Who this process is, as far as it was told; nothing slow is asked."""
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "host": socket.gethostname(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "executable": sys.executable,
        "told": told,
    }


def number(name: str) -> int | None:
    """A variable as a whole number, None when it is not set or none."""
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        return None


class Driver:
    """What the CUDA driver says of the devices that this process may see; needs no torch and makes no context."""

    def __init__(self) -> None:
        import ctypes

        self.c = ctypes
        self.lib = ctypes.CDLL("libcuda.so.1")
        status = self.lib.cuInit(0)
        self.count = 0
        self.error = None
        if status != 0:
            self.error = self.name_of(status)
            return
        count = ctypes.c_int()
        self.lib.cuDeviceGetCount(ctypes.byref(count))
        self.count = count.value

    def name_of(self, status: int) -> str:
        """The driver's name of an error: ``CUDA_ERROR_NO_DEVICE``."""
        text = self.c.c_char_p()
        if self.lib.cuGetErrorName(status, self.c.byref(text)) == 0 and text.value:
            return text.value.decode()
        return f"CUDA error {status}"

    def devices(self) -> list[dict[str, Any]]:
        """Name, UUID and bus id of each device, in the order of ``cuda:N``."""
        return [self.device(index) for index in range(self.count)]

    def device(self, index: int) -> dict[str, Any]:
        """What is known of one device; what the driver does not tell is left out."""
        handle = self.handle(index)
        name = self.c.create_string_buffer(256)
        bus = self.c.create_string_buffer(32)
        found: dict[str, Any] = {"index": index}
        if self.lib.cuDeviceGetName(name, 256, handle) == 0:
            found["name"] = name.value.decode("utf-8", "replace")
        if self.lib.cuDeviceGetPCIBusId(bus, 32, handle) == 0:
            found["bus"] = bus.value.decode("ascii", "replace")
        whole, part = self.uuid("cuDeviceGetUuid", handle), self.uuid("cuDeviceGetUuid_v2", handle)
        # The newer function names the MIG instance, the older one the GPU that it is part of.
        if part is not None and whole is not None and part != whole:
            found["uuid"] = "MIG-" + part
        elif part or whole:
            found["uuid"] = f"GPU-{part or whole}"
        return found

    def handle(self, index: int) -> Any:
        """The driver's own number for a device."""
        handle = self.c.c_int()
        self.lib.cuDeviceGet(self.c.byref(handle), index)
        return handle

    def uuid(self, function: str, handle: Any) -> str | None:
        """A UUID as nvidia-smi writes it, without the word in front; None where this driver lacks the function."""
        if not hasattr(self.lib, function):
            return None
        raw = (self.c.c_ubyte * 16)()
        if getattr(self.lib, function)(self.c.byref(raw), handle) != 0:
            return None
        text = bytes(raw).hex()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def peers(self) -> list[list[Any]]:
        """Which pairs of devices may read each other's memory: ``[a, b, yes]``."""
        found = []
        for a in range(self.count):
            for b in range(a + 1, self.count):
                can = self.c.c_int()
                if self.lib.cuDeviceCanAccessPeer(self.c.byref(can), self.handle(a), self.handle(b)) == 0:
                    found.append([a, b, bool(can.value)])
        return found


class Worker:
    """The stages, one method each. A method's answer goes to the doctor as it is."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.cpu = bool(channel.settings.get("cpu"))
        self.rank = number("RANK")
        self.torch: Any = None
        self.device: Any = None
        self.work: Callable[[], object] = list
        self.chunk = 1

    def run(self) -> None:
        """Report, then obey until the end."""
        self.attempt("identity", self.identify, {})
        while True:
            order = self.channel.orders.get()
            if order["do"] == "end":
                self.fault("end")
                self.channel.send("bye")
                # torch's own shutting down may wait for other ranks, or for a device that hangs.
                sys.stdout.flush()
                os._exit(0)
            self.attempt(order["do"], getattr(self, "do_" + order["do"]), order)

    def attempt(self, stage: str, action: Callable[[Any], Any], order: dict[str, Any]) -> None:
        """One stage; an exception is told, not raised."""
        try:
            answer = action(order) or {}
        except BaseException as error:  # noqa: BLE001 - whatever it is, the doctor has to hear of it
            self.channel.send("failed", stage=stage, error=told_of(error))
        else:
            self.channel.send("done", stage=stage, **answer)

    def fault(self, stage: str) -> bool:
        """Misbehave where a test asked for it."""
        for part in os.environ.get(FAULT_VARIABLE, "").split(","):
            words = part.split(":")
            if len(words) < 3 or words[1] != stage or words[2] not in ("*", str(self.rank or 0)):
                continue
            if len(words) > 3 and words[3].partition("=")[2] in os.environ:
                continue
            if misbehave(words[0]):
                return True
        return False

    def identify(self, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - all stages are called alike
        """The devices first, then torch: without torch the doctor still learns which device this is."""
        self.fault("hello")
        answer: dict[str, Any] = {}
        driver = None
        self.channel.send("at", what="the CUDA driver")
        self.fault("driver")
        if not self.cpu:
            try:
                driver = Driver()
                answer["driver_error"] = driver.error
                answer["devices"] = driver.devices()
            except (OSError, AttributeError) as error:
                answer["driver_error"] = str(error)
        chosen = self.choose(driver.count if driver is not None else 0)
        answer.update(chosen)
        self.channel.send("seen", **answer)
        self.channel.send("at", what="import torch")
        self.fault("torch")
        self.torch = importlib.import_module("torch")
        importlib.import_module("torch.distributed")
        return self.ready(chosen, driver)

    def choose(self, count: int) -> dict[str, Any]:
        """The device of this local rank, as accelerate chooses: the rank modulo the number of visible devices.

        (accelerate 1.7.0 and 1.15.0, state.py PartialState.set_device().)
        """
        local = number("LOCAL_RANK") or 0
        if self.cpu or not count:
            return {"index": None, "wrapped": False}
        return {"index": local % count, "wrapped": local >= count}

    def ready(self, chosen: dict[str, Any], driver: Driver | None) -> dict[str, Any]:
        """What torch makes of the machine, and the device taken into use."""
        torch = self.torch
        nccl = getattr(torch.cuda, "nccl", None)
        answer = {"torch": torch.__version__, "cuda": torch.version.cuda, "cuda_ok": False, "cuda_error": None}
        answer["hip"] = getattr(torch.version, "hip", None)
        answer["has_nccl"] = bool(torch.distributed.is_available() and torch.distributed.is_nccl_available())
        answer["distributed"] = bool(torch.distributed.is_available())
        if self.cpu:
            return answer
        if torch.cuda.is_available():
            if chosen["index"] is None:
                chosen = self.choose(torch.cuda.device_count())
            self.device = torch.device("cuda", chosen["index"])
            torch.cuda.set_device(self.device)
            properties = torch.cuda.get_device_properties(self.device)
            answer.update(cuda_ok=True, index=chosen["index"], wrapped=chosen["wrapped"], name=properties.name)
            answer["count"] = torch.cuda.device_count()
            uuid = getattr(properties, "uuid", None)
            if uuid is not None:
                answer["torch_uuid"] = str(uuid)
            if answer["has_nccl"] and nccl is not None:
                answer["nccl"] = ".".join(str(part) for part in nccl.version())
            if driver is not None and driver.count <= 16:
                answer["peers"] = driver.peers()
        elif driver is not None and (driver.count or driver.error not in (None, "CUDA_ERROR_NO_DEVICE")):
            try:
                torch.zeros(1, device="cuda")
            except Exception as error:  # noqa: BLE001 - torch's own words are what is wanted
                answer["cuda_error"] = told_of(error)
        return answer

    def do_device(self, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - all stages are called alike
        """The first work on the device, with a result that is known beforehand."""
        self.fault("device")
        torch = self.torch
        if self.device is None:
            torch.set_num_threads(1)
        small = torch.ones(64, 64, device=self.device)
        value = (small @ small).sum().item()
        if value != 64 * 64 * 64:
            raise ArithmeticError(f"the product of two 64×64 matrices of ones sums up to {value!r}, not 262144")
        self.prepare()
        return {}

    def prepare(self) -> None:
        """The measured work: one matrix product, and how many make up some milliseconds."""
        torch = self.torch
        side, kind = SIDE_CPU, torch.float32
        if self.device is not None:
            side = SIDE_GPU
            if torch.cuda.get_device_capability(self.device)[0] >= 7:
                kind = torch.float16
        left = torch.ones(side, side, dtype=kind, device=self.device)
        out = torch.empty_like(left)
        self.work = lambda: torch.mm(left, left, out=out)
        self.work()
        self.synchronize()
        start = time.perf_counter()
        self.work()
        self.synchronize()
        once = max(time.perf_counter() - start, 1e-6)
        self.chunk = max(1, min(1000, int((0.005 if self.device is not None else 0.002) / once)))

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self.device is not None:
            self.torch.cuda.synchronize(self.device)

    def measure(self, seconds: float) -> float:
        """Milliseconds for one product: the median over chunks of some milliseconds."""
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while not samples or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(self.chunk):
                self.work()
            self.synchronize()
            samples.append((time.perf_counter() - start) * 1000 / self.chunk)
        return sorted(samples)[len(samples) // 2]

    def do_solo(self, order: dict[str, Any]) -> dict[str, Any]:
        """The measured work while all other ranks rest."""
        self.fault("solo")
        self.measure(order["warm"])
        return {"ms": self.measure(order["seconds"])}

    def do_arm(self, order: dict[str, Any]) -> dict[str, Any]:
        """Warm up for the common measurement; ``together`` follows when every rank is warm."""
        self.measure(order["warm"])
        return {}

    def do_together(self, order: dict[str, Any]) -> dict[str, Any]:
        """The same work while all ranks work."""
        self.fault("together")
        return {"ms": self.measure(order["seconds"])}

    def do_group(self, order: dict[str, Any]) -> dict[str, Any]:
        """Join the group that the launcher's variables describe, as the program would."""
        self.fault("group")
        if order.get("loopback"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.join(order["backend"], "env://", None, None)
        distributed = self.torch.distributed
        return {"rank": distributed.get_rank(), "world": distributed.get_world_size()}

    def join(self, backend: str, method: str, rank: int | None, world: int | None) -> None:
        """Form a process group; the doctor's deadlines are far shorter than the one given here."""
        from datetime import timedelta

        options = {"backend": backend, "init_method": method, "timeout": timedelta(seconds=MOST_SECONDS)}
        if rank is not None:
            options.update(rank=rank, world_size=world)
        self.torch.distributed.init_process_group(**options)

    def do_collective(self, order: dict[str, Any]) -> dict[str, Any]:
        """all_reduce of values that differ by rank and by place, every element checked, then its speed."""
        spoilt = self.fault("collective")
        torch, distributed = self.torch, self.torch.distributed
        rank, world = distributed.get_rank(), distributed.get_world_size()
        count = order["bytes"] // 4
        base = (torch.arange(count, device=self.device) % 5 + 1).float()
        values = base * (rank + 1)
        self.channel.send("at", what="all_reduce")
        distributed.all_reduce(values)
        self.synchronize()
        if spoilt:
            values[count // 2] += 1
        answer = {"measured": self.checked(values / base, world * (world + 1) / 2)}
        values.zero_()
        answer["seconds"] = self.time_all_reduce(values)
        answer["bytes"] = count * 4
        return answer

    def checked(self, ratios: Any, expected: float) -> float:
        """The expected value when every element has it, else the first other one."""
        wrong = (ratios - expected).abs() > 1e-6 * expected
        wrong |= ratios.isnan()
        if not bool(wrong.any()):
            return expected
        return float(ratios[wrong][0])

    def time_all_reduce(self, values: Any) -> float:
        """Seconds for one all_reduce, over as many as the slowest rank can do in a tenth of a second."""
        distributed = self.torch.distributed
        once = self.timed(lambda: distributed.all_reduce(values), 1)
        slowest = self.torch.tensor([once], device=self.device)
        distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX)
        times = max(3, min(20, int(0.1 / max(float(slowest[0]), 1e-6))))
        return self.timed(lambda: distributed.all_reduce(values), times)

    def timed(self, action: Callable[[], object], times: int) -> float:
        """Seconds that one of several calls takes."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            action()
        self.synchronize()
        return (time.perf_counter() - start) / times

    def do_link(self, order: dict[str, Any]) -> dict[str, Any]:
        """Messages from rank a to rank b; b's time counts, from the first one received to the last."""
        self.fault("link")
        distributed = self.torch.distributed
        a, b = order["a"], order["b"]
        sends = distributed.get_rank() == a
        data = self.torch.zeros(order["bytes"] // 4, device=self.device)

        def pass_on() -> None:
            if self.device is None:
                handle = distributed.isend(data, b) if sends else distributed.irecv(data, a)
                handle.wait()
                return
            one = distributed.P2POp(distributed.isend if sends else distributed.irecv, data, b if sends else a)
            for request in distributed.batch_isend_irecv([one]):
                request.wait()

        pass_on()
        self.synchronize()
        seconds = self.timed(pass_on, order["times"])
        return {"seconds": seconds, "bytes": data.numel() * 4}

    def do_regroup(self, order: dict[str, Any]) -> dict[str, Any]:
        """Form a group of some ranks at an address that the doctor chose, and all_reduce over it once."""
        torch, distributed = self.torch, self.torch.distributed
        if distributed.is_initialized():
            distributed.destroy_process_group()
        ranks = order["ranks"]
        spoilt = self.fault("collective") if order["all"] else self.fault(f"pair-{ranks[0]}-{ranks[1]}")
        method = f"tcp://{order['address']}:{order['port']}"
        self.join(order["backend"], method, ranks.index(order["rank"]), len(ranks))
        self.channel.send("at", what="all_reduce")
        values = torch.full((order["bytes"] // 4,), float(ranks.index(order["rank"]) + 1), device=self.device)
        distributed.all_reduce(values)
        self.synchronize()
        if spoilt:
            values[0] += 1
        expected = len(ranks) * (len(ranks) + 1) / 2
        return {"measured": self.checked(values, expected), "expected": expected}


def told_of(error: BaseException) -> str:
    """An exception in one line: its first one, and what NCCL says behind "Last error:" where torch passes that on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    for at, line in enumerate(lines[1:], start=1):
        if line.startswith("Last error:"):
            text = " ".join([text, *lines[at : at + 2]])
            break
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def misbehave(action: str) -> bool:
    """Carry out an injected fault; True when the caller is to spoil its result."""
    if action == "hang":
        threading.Event().wait()
    elif action == "block":
        import ctypes

        ctypes.PyDLL(None).pause()
        while True:
            ctypes.PyDLL(None).pause()
    elif action == "kill":
        os.kill(os.getpid(), 9)
    elif action == "exit":
        os._exit(3)
    elif action == "raise":
        raise RuntimeError("injected fault")
    elif action == "flood":
        line = "x" * 1023 + "\n"
        for _ in range(64 * 1024):
            sys.stdout.write(line)
        sys.stdout.flush()
    return action == "wrong"


def enable_dump() -> None:
    """A way to the stack that works while the interpreter's lock is held: SIGUSR1 writes it to a file."""
    import faulthandler
    import signal

    path = os.path.join(HERE, f"stack.{os.getpid()}")
    dump = open(path, "w")  # noqa: SIM115 - open until the process ends
    faulthandler.register(signal.SIGUSR1, file=dump, all_threads=True)


def ask_nccl_to_talk() -> None:
    """NCCL says in a file of its own which way it goes between two ranks; it reads these variables once."""
    os.environ["NCCL_DEBUG"] = "INFO"
    os.environ["NCCL_DEBUG_SUBSYS"] = "INIT,P2P,SHM,NET"
    os.environ["NCCL_DEBUG_FILE"] = os.path.join(HERE, f"nccl.{os.getpid()}")


def main() -> None:
    """Say hello before anything else, then work."""
    with open(os.path.join(HERE, "channel.json")) as file:
        settings = json.load(file)
    try:
        channel = Channel(settings)
    except OSError:
        leave()
    channel.send("hello", token=settings["token"], **identity())
    threading.Thread(target=channel.listen, daemon=True).start()
    enable_dump()
    ask_nccl_to_talk()
    if sys.path and os.path.abspath(sys.path[0] or ".") == HERE:
        # Nothing of ours is to be found by the imports that follow.
        del sys.path[0]
    Worker(channel).run()


if __name__ == "__main__":
    main()
