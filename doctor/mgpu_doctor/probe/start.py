"""What the probe starts: a launch with our worker in the place of its program, or one worker for each GPU.

The command's own words are kept: launchers with their options and configuration files, wrappers that decide which
interpreter or processors are used, the environment. Only the program and its arguments are replaced, and the
options that say what kind of program it is (``-m``, ``--module``, ``--no_python``).
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Mapping

from mgpu_doctor.errors import InputError, UsageError
from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import RANK_LAUNCHERS, TORCHRUN_NAMES, Launch, Layer, Option
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.version import is_before

ON_THE_CPU = 2
"""Workers of a probe without a command where there is no GPU: the fewest that have to talk to each other."""

LOOPBACK = "127.0.0.1"

_KEPT_WRAPPERS = frozenset(
    {
        "numactl", "taskset", "nice", "ionice", "chrt", "stdbuf", "conda run", "mamba run", "micromamba run", "uv run",
        "uvx", "uv tool run", "poetry run", "pipenv run", "pdm run", "hatch run", "pixi run", "rye run", "pipx run",
        "dotenv run", "doppler run",
    }
)  # fmt: skip
"""Wrappers that decide with what the program runs, and so belong to what is measured."""

_SILENT_WRAPPERS = frozenset(
    {
        "env", "env -S", "exec", "command", "builtin", "nohup", "time", "timeout", "setsid", "flock", "unbuffer",
        "caffeinate", "catchsegv", "xvfb-run",
    }
)  # fmt: skip
"""Wrappers whose effect is in the command's environment, or that change nothing of what is measured."""

_RANK_VARIABLES = frozenset(
    {
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
        "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
    }
)  # fmt: skip
"""What speaks of the job that this shell is part of, and not of the machine."""

_SCHEDULERS = frozenset({"srun", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun"})
_ELSEWHERE = (
    "docker", "podman", "nerdctl", "nvidia-docker", "singularity", "apptainer", "enroot", "kubectl", "oc ", "ssh",
    "ray ", "su",
)  # fmt: skip
_SHELL_TEXT = ("bash -c", "sh -c", "zsh -c", "dash -c", "ksh -c")
_WRAPPER_LAYERS = frozenset({"srun", "mpirun", "bash -c", "ray job submit", "docker", "docker exec", "apptainer"})
_KINDS = ("module", "no_python")
_ONE_PROCESS = frozenset({"llamafactory-cli", "swift", "megatron"})


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started, and what was said of it beforehand."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    shown: str
    promised: int | Unknown
    promised_uuids: tuple[str | Unknown, ...] | Unknown
    notes: tuple[str, ...] = ()


def plain_start(facts: Facts, processes: int | None, python: str | None, worker: str, *, cpu: bool) -> Start:
    """One worker for each visible GPU, started by torch's own launcher at a free port of this machine.

    Raises:
        InputError: no interpreter is known.
    """
    interpreter = python or facts.python.executable
    if isinstance(interpreter, Unknown):
        raise InputError(
            f"no Python interpreter to probe with: {interpreter.reason}", hint="name one: --python /path/to/python"
        )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _RANK_VARIABLES and not name.startswith(("PET_", "TORCHELASTIC_"))
    }
    gpus = None if cpu else visible_count(facts, environment)
    if processes is not None:
        count = str(processes)
    elif gpus:
        # torch counts itself: what it sees is what the workers will have.
        count = "gpu"
    else:
        count = str(ON_THE_CPU)
    promised = processes if processes is not None else gpus or ON_THE_CPU
    argv = (
        interpreter, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", count,
        "--master_addr", LOOPBACK, "--master_port", str(free_port()), worker,
    )  # fmt: skip
    shown = f"{interpreter} -m torch.distributed.run --nproc_per_node {count}"
    unknown = Unknown("no command said which devices")
    # Not the user's directory: `python -m` would import a random.py or torch/ that lies there.
    return Start(argv, environment, os.path.dirname(worker), shown, promised, unknown)


def visible_count(facts: Facts, environment: Mapping[str, str]) -> int | None:
    """How many GPUs a process with this environment may see, as far as the inventory and the list tell; None if not."""
    if isinstance(facts.gpus, Unknown):
        return None
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return len(facts.gpus)
    entries = [entry.strip() for entry in text.split(",")]
    count = 0
    for entry in entries:
        valid = entry.isdigit() and int(entry) < len(facts.gpus)
        if not valid and not entry.startswith(("GPU-", "MIG-")):
            break
        count += 1
    return 0 if len(set(entries[:count])) < count else count


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def launch_start(launch: Launch, python: str | None, directory: str, worker: str) -> Start:
    """The command with our worker in its program's place.

    Raises:
        InputError: the command cannot be started here: a part of it is not known, it runs in another place, or it
            has no program that could be replaced.
    """
    return _Rebuilt(launch, python, directory, worker).start()


class _Rebuilt:
    """One command on its way to words again."""

    def __init__(self, launch: Launch, python: str | None, directory: str, worker: str) -> None:
        self.launch = launch
        self.python = python
        self.root = directory
        self.worker = worker
        self.notes: list[str] = []
        self.environment = self._environment()
        self.layers = [layer for layer in launch.layers if layer.launcher not in _WRAPPER_LAYERS]

    def start(self) -> Start:
        prefix = self._wrappers()
        self._refuse_what_cannot_be()
        words = [*prefix, *self._launchers()]
        return Start(
            tuple(words),
            self.environment,
            self._directory(),
            " ".join(_quoted(word) for word in (*words[:-1], os.path.basename(words[-1]))),
            self._promised(),
            self._promised_uuids(),
            tuple(self.notes),
        )

    def _environment(self) -> dict[str, str]:
        command = self.launch.command
        found = {} if command.unset_all else dict(os.environ)
        for variable in command.environment:
            if variable.scope == "inherited" or not variable.exported:
                continue
            if variable.value is None:
                found.pop(variable.name, None)
            else:
                found[variable.name] = self._text(variable.value, f"{variable.name}=", os.environ)
        return found

    def _text(self, word: Word, before: str = "", environment: Mapping[str, str] | None = None) -> str:
        """A word as the shell would pass it on this machine."""
        known = self.environment if environment is None else environment
        parts = []
        for piece in word.pieces:
            text = piece.text if piece.text is not None else expanded(piece, known)
            if text is None:
                raise InputError(
                    f"{before}{word.written}: its value is not known, so the command cannot be started",
                    hint="write the value in the command, or export the variable",
                )
            parts.append(text)
        return "".join(parts)

    def _directory(self) -> str:
        inside = self.launch.command.directory
        if isinstance(inside, Unknown):
            raise InputError(f"the directory that the command runs in is not known: {inside.reason}")
        found = os.path.abspath(os.path.join(self.root, inside or ""))
        if not os.path.isdir(found):
            raise InputError(f"the command runs in {found}, which does not exist")
        return found

    def _wrappers(self) -> list[str]:
        words: list[str] = []
        for wrapper in self.launch.command.wrappers:
            name = wrapper.name
            if name in _SCHEDULERS:
                self._without_scheduler(name)
            elif name in _SHELL_TEXT or name in _SILENT_WRAPPERS:
                continue
            elif name.startswith(_ELSEWHERE) and name != "sudo":
                raise InputError(
                    f"the command runs inside {name}, where the probe cannot go from here",
                    hint=f"start the probe there: {name} … mgpu-doctor probe -- (the command behind {name})",
                )
            elif name in _KEPT_WRAPPERS:
                words.extend(self._text(word) for word in wrapper.words)
            else:
                self.notes.append(f"{name} is left out: the command behind it is started directly.")
        return words

    def _without_scheduler(self, name: str) -> None:
        layer = next((layer for layer in self.launch.layers if layer.launcher in ("srun", "mpirun")), None)
        if not self.launch.distributed_layers:
            raise InputError(
                f"{name} itself starts the processes of this command, and the probe works on one machine without it",
                hint="probe each machine of the job without a command: mgpu-doctor probe",
            )
        tasks = layer.option("ntasks_per_node") if layer is not None else None
        each = f" ({tasks.value} a node)" if tasks is not None and tasks.value not in (None, "1") else ""
        self.notes.append(f"{name} is left out{each}: what it starts is started once, on this machine.")

    def _refuse_what_cannot_be(self) -> None:
        target = self.launch.target
        if any(layer.launcher in ("trl", "axolotl", "tune run") for layer in self.layers):
            name = next(layer.launcher for layer in self.layers if layer.launcher in ("trl", "axolotl", "tune run"))
            raise InputError(
                f"{name} starts its own launcher, and takes no other program than its own",
                hint="probe that launcher: mgpu-doctor probe -- accelerate launch … or torchrun …",
            )
        if not self.layers and target.kind == "command" and (target.value or "").rpartition("/")[2] in _SHELLS:
            raise InputError(
                "the command runs a shell script: there is no program in it that the probe could replace",
                hint="give the launch command that the script contains",
            )
        opaque = next((layer for layer in self.layers if layer.opaque is not None), None)
        if opaque is not None and target.kind == "none":
            raise InputError(f"{opaque.launcher}: {opaque.opaque}", hint="write the command's values in it")

    def _launchers(self) -> list[str]:
        implied = next((layer for layer in self.layers if layer.implied), None)
        if implied is not None:
            return self._implied(implied)
        if not any(layer.launcher in RANK_LAUNCHERS or layer.launcher == "python" for layer in self.layers):
            return [self._interpreter(), self.worker]
        words: list[str] = []
        for layer in self.layers[:-1]:
            words.extend(self._layer_words(layer))
        last = self.layers[-1]
        if last.launcher in _ONE_PROCESS:
            # `torchrun … -m llamafactory.cli chat`: the command is the program.
            kept = [layer for layer in self.layers if layer.launcher not in _ONE_PROCESS]
            words = [word for layer in kept[:-1] for word in self._layer_words(layer)]
            last = kept[-1]
        words.extend(self._last_words(last))
        return [*words, self.worker]

    def _layer_words(self, layer: Layer) -> list[str]:
        return [self._text(word) for word in (*layer.command_words, *layer.argument_words)]

    def _last_words(self, layer: Layer) -> list[str]:
        """The innermost launcher's words, fit for a Python file."""
        if layer.launcher == "python":
            return python_words([self._text(word) for word in (*layer.command_words, *layer.argument_words)])
        name = [self._text(word) for word in layer.command_words]
        dropped = {option.flag for dest in _KINDS for option in layer.options_for(dest)}
        for dest in _KINDS:
            self.environment.pop(f"PET_{dest.upper()}", None)
        nodes = self.launch.nodes.known
        gone = self._dropped_spans(layer) if nodes is not None and nodes > 1 else ()
        own = []
        for word in layer.argument_words:
            text = self._text(word)
            if any(start <= word.span.start and word.span.end <= end for start, end in gone):
                continue
            kept = without_kind(text, dropped, layer)
            if kept is not None:
                own.append(kept)
        if own and own[-1] == "--":
            own.pop()
        return [*name, *own, *(self._one_node(layer) if nodes is not None and nodes > 1 else ())]

    def _dropped_spans(self, layer: Layer) -> tuple[tuple[int, int], ...]:
        """The options that speak of other machines."""
        dests: tuple[str, ...] = ()
        if layer.launcher == "deepspeed":
            dests = ("hostfile", "include", "exclude", "num_nodes", "num_gpus", "node_rank", "launcher", "no_ssh",
                     "launcher_args", "force_multi", "master_addr")  # fmt: skip
        elif layer.launcher in TORCHRUN_NAMES:
            dests = ("nnodes", "node_rank", "master_addr", "rdzv_endpoint", "rdzv_backend", "rdzv_conf", "local_addr")
        return tuple((o.span.start, o.span.end) for dest in dests for o in layer.options_for(dest))

    def _one_node(self, layer: Layer) -> list[str]:
        nodes, here = self.launch.nodes.known, self.launch.processes_per_node.known
        if here is None:
            raise InputError(
                "the command is for several machines, and how many processes it starts on each is not known",
                hint="probe each machine: mgpu-doctor probe",
            )
        self.notes.append(f"The command is for {nodes} machines; this one's {here} processes are probed alone.")
        if layer.launcher == "accelerate":
            return ["--num_machines", "1", "--machine_rank", "0", "--num_processes", str(here)]
        if layer.launcher == "deepspeed":
            return ["--hostfile", os.path.join(os.path.dirname(self.worker), "no-hostfile"), "--num_gpus", str(here)]
        return self._one_node_torchrun(layer)

    def _one_node_torchrun(self, layer: Layer) -> list[str]:
        rendezvous = self.launch.rendezvous
        words = ["--nnodes", "1", "--node_rank", "0"]
        backend = layer.option("rdzv_backend")
        port = rendezvous.port.known if rendezvous is not None and rendezvous.port is not None else None
        if backend is not None and backend.value not in (None, "static"):
            return [*words, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{LOOPBACK}:{port or 0}"]
        words += ["--master_addr", LOOPBACK]
        if layer.option("master_port") is None and port:
            words += ["--master_port", str(port)]
        return words

    def _implied(self, implied: Layer) -> list[str]:
        """The torchrun that a framework's command starts by itself.

        LLaMA-Factory runs the ``torchrun`` on PATH with these options (llamafactory 0.9.3 cli.py main(), 0.9.5
        launcher.py launch()) and looks for a free port where MASTER_PORT names none; ms-swift runs
        ``python -m torch.distributed.run`` with the interpreter of its own (ms-swift 3.9.0 cli/main.py cli_main()).
        """
        outer = [layer for layer in self.layers[: self.layers.index(implied)] if layer.launcher in RANK_LAUNCHERS]
        if outer:
            raise InputError(
                f"{outer[-1].launcher} starts a command that starts torchrun itself: the inner launchers cannot be"
                " reproduced",
                hint="leave out one of the two launchers",
            )
        words = ["torchrun"]
        if implied.launcher == "torch.distributed.run":
            words = [self._interpreter(), "-m", "torch.distributed.run"]
        else:
            self._tuned(self.launch.layer("llamafactory-cli"))
        for option in implied.options:
            words += [option.flag, self._implied_value(option)]
        nodes = self.launch.nodes.known
        if nodes is not None and nodes > 1:
            words += self._one_node(implied)
        return [*words, self.worker]

    def _tuned(self, layer: Layer | None) -> None:
        """What LLaMA-Factory sets for torchrun unless OPTIM_TORCH turns it off (llamafactory 0.9.3 to 0.9.5)."""
        version = layer.release.version if layer is not None and layer.release is not None else None
        if is_before(version, 0, 9, 3) or self.environment.get("OPTIM_TORCH", "1").lower() not in ("true", "y", "1"):
            return
        self.environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        self.environment["TORCH_NCCL_AVOID_RECORD_STREAMS"] = "1"

    def _implied_value(self, option: Option) -> str:
        if option.dest == "nproc_per_node" and option.values[0].value is None:
            raise InputError(
                "the command starts one process for each visible GPU, and how many these are is not known",
                hint="set NPROC_PER_NODE",
            )
        text = self._text(option.values[0])
        if option.dest == "master_port" and text == "0":
            return str(free_port())
        if option.dest == "rdzv_endpoint" and text.endswith(":0"):
            return f"{text[:-2]}:{free_port()}"
        return text

    def _interpreter(self) -> str:
        if self.python is None:
            raise InputError(
                "which interpreter the command uses is not known", hint="name it: --python /path/to/python"
            )
        return self.python

    def _promised(self) -> int | Unknown:
        """How many processes whoever wrote the command asked for on this machine.

        The number in its own words, where there is one: ``--num_processes 4`` promises four, whatever a configuration
        file makes of it.
        """
        if any(wrapper.name in _SCHEDULERS for wrapper in self.launch.command.wrappers):
            return Unknown("the scheduler that starts the launcher was left out")
        hidden = next((layer.opaque for layer in self.layers if layer.opaque is not None), None)
        if hidden is not None:
            return Unknown(hidden)
        for layer in self.layers:
            if layer.launcher == "python" and any(word.value is None for word in layer.argument_words):
                return Unknown("a word of unknown value may be a launcher")
        said = self.launch.processes_per_node.value
        ranked = [layer for layer in self.layers if layer.launcher in RANK_LAUNCHERS]
        if len(ranked) != 1:
            return said
        asked = asked_processes(ranked[0])
        nodes = self.launch.nodes.known
        if asked is None or nodes is None:
            return said
        if ranked[0].launcher == "accelerate":
            asked //= max(nodes, 1)
        return asked if isinstance(said, Unknown) else max(asked, said)

    def _promised_uuids(self) -> tuple[str | Unknown, ...] | Unknown:
        ranks = self.launch.ranks
        if isinstance(ranks, Unknown):
            return ranks
        nodes = self.launch.nodes.known
        here = 0 if nodes == 1 else self.launch.node_rank.known
        return tuple(placement.uuid for placement in ranks if placement.node == here)


_SHELLS = frozenset({"bash", "sh", "zsh", "dash", "ksh"})


def asked_processes(layer: Layer) -> int | None:
    """The number of processes that a launcher's options, or else its configuration file, ask for; None without one."""
    for dest in ("num_processes", "nproc_per_node", "num_gpus"):
        option = layer.option(dest)
        if option is None:
            continue
        text = option.value
        return int(text) if text is not None and text.isdigit() else None
    if layer.launcher == "accelerate" and layer.config is not None and layer.config.exists is True:
        count = layer.config.get("num_processes")
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return None


def expanded(piece: Piece, environment: Mapping[str, str]) -> str | None:
    """What an expansion of unknown value gives on this machine: a variable, or a program's place; None if unclear."""
    written = piece.written.strip()
    name = written[2:-1] if written.startswith("${") and written.endswith("}") else written[1:]
    if written.startswith("$") and name.isidentifier():
        return environment.get(name)
    if written.startswith("$(") and written.endswith(")"):
        inner = written[2:-1].split()
        if len(inner) in (2, 3) and inner[0] in ("which", "command") and inner[1] in (inner[-1], "-v"):
            return shutil.which(inner[-1], path=environment.get("PATH"))
    return None


def without_kind(text: str, dropped: Iterable[str], layer: Layer) -> str | None:
    """A launcher's word without the switch for a module, or for no Python file; None when that was all."""
    if text in dropped:
        return None
    letters = {
        flag[1] for dest in _KINDS for option in layer.options_for(dest) for flag in option.spec.flags if len(flag) == 2
    }
    if len(text) > 2 and text[0] == "-" and text[1] != "-" and text[1:].isalpha() and letters & set(text[1:]):
        kept = "".join(letter for letter in text[1:] if letter not in letters)
        return f"-{kept}" if kept else None
    return text


def python_words(words: list[str]) -> list[str]:
    """An interpreter's words without the ``-m`` or ``-c`` that they end with."""
    if len(words) > 1 and words[-1] == "--":
        words = words[:-1]
    last = words[-1]
    if len(words) > 1 and last[:1] == "-" and last[1:2] != "-" and last[-1:] in ("m", "c"):
        kept = last[:-1]
        return [*words[:-1], kept] if len(kept) > 1 else words[:-1]
    return words


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def refuse_both(launch: Launch | None, processes: int | None) -> None:
    """A number of processes only makes sense without a command.

    Raises:
        UsageError: both are given, or the number is not one that can be started.
    """
    if launch is not None and processes is not None:
        raise UsageError(
            "a command says itself how many processes it starts", hint="leave out --nproc, or the command behind --"
        )
    if processes is not None and not 1 <= processes <= 64:
        raise UsageError(f"{processes} workers: the probe starts between 1 and 64", hint="--nproc 2")
