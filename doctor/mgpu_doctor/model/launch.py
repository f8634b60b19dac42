"""What a command would do: layers, processes, devices, rendezvous, engine, purpose."""

from __future__ import annotations

from mgpu_doctor.model.command import Command, Word
from mgpu_doctor.model.known import Setting, Unknown
from mgpu_doctor.model.program import ConfigFile, Program
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Span


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One option of one release of a launcher, as its argument parser declares it.

    ``flags`` are all spellings; ``dest`` the attribute it fills; ``action`` is
    argparse's (``store``, ``store_true``, ``store_const``, ``append``, ``help``,
    ``version``, or ``env`` for torchrun's variable-backed options); ``nargs`` is
    argparse's (None for one value); ``type`` is the name of the callable that
    converts the value (``int``, ``str`` …); ``default`` is the literal default,
    or :class:`Unknown` when it is computed. A positional has no flags.
    """

    dest: str
    flags: tuple[str, ...]
    action: str = "store"
    nargs: str | int | None = None
    type: str | None = None
    choices: tuple[object, ...] | None = None
    default: object = None
    required: bool = False
    const: object = None
    help: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Which release of a package the reasoning is about, and why that one.

    ``version`` is None when nothing is known about the package. ``why`` is a
    clause for people: "installed in /opt/conda/lib/python3.11/site-packages",
    "from the facts file", "no accelerate found: the latest known release".
    ``certain`` is False for an assumed release: a rule that holds only for some
    releases must then say so, or stay silent.
    """

    package: str
    version: str | None
    why: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Option:
    """An option as given: ``flag`` as typed, the spec it resolved to, values, and its words.

    ``values`` holds the value words (empty for a switch); with ``--a=b`` the
    value word's span covers ``b`` alone. ``converted`` is the value after the
    declared type, :class:`Unknown` when it is not known statically.
    """

    spec: OptionSpec
    flag: str
    values: tuple[Word, ...]
    span: Span
    converted: object = None

    @property
    def dest(self) -> str:
        """The attribute it fills."""
        return self.spec.dest

    @property
    def value(self) -> str | None:
        """The (first) value's exact text, or None for a switch or an unknown value."""
        return self.values[0].value if self.values else None


@dataclass(frozen=True, slots=True)
class ParseProblem:
    """A reason for which the launcher's own parser refuses the command line.

    ``kind``: ``unknown-option``, ``ambiguous-option``, ``missing-value``,
    ``invalid-value``, ``invalid-choice``, ``missing-target``,
    ``unexpected-value`` (a value for a switch), ``conflict``,
    ``unexpected-argument``, ``refused`` (a check after parsing). ``message`` is
    what the launcher itself would print, or nearly. ``flag`` is the option as typed.
    """

    kind: str
    message: str
    span: Span
    flag: str | None = None
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One program in the chain that starts the work, outermost first.

    ``launcher`` is canonical: accelerate, deepspeed, torchrun,
    torch.distributed.run, torch.distributed.launch, llamafactory-cli, srun,
    mpirun, python, swift, bash, docker …. ``command_words`` are the words that name it
    (``python -m torch.distributed.run``), ``argument_words`` its own arguments
    as words, target excluded. ``implied`` marks a layer that nobody typed: the
    torchrun that ``llamafactory-cli train`` starts by itself.
    """

    launcher: str
    command_words: tuple[Word, ...]
    argument_words: tuple[Word, ...] = ()
    options: tuple[Option, ...] = ()
    release: Release | None = None
    problems: tuple[ParseProblem, ...] = ()
    config: ConfigFile | None = None
    """The configuration file that takes part (accelerate's YAML), given or default."""
    config_is_default: bool = False
    implied: bool = False
    opaque: str | None = None
    """Why the split between options and target could not be followed; None when it could."""

    def option(self, dest: str) -> Option | None:
        """The last given option that fills ``dest``, as argparse would keep it."""
        for option in reversed(self.options):
            if option.dest == dest:
                return option
        return None

    def options_for(self, dest: str) -> tuple[Option, ...]:
        """Every given option that fills ``dest``, in order."""
        return tuple(option for option in self.options if option.dest == dest)

    @property
    def span(self) -> Span:
        """The words that name the launcher."""
        return Span(self.command_words[0].span.start, self.command_words[-1].span.end)


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of the target, read as ``--name value``, ``--name=value``, ``name=value`` or positional.

    ``name`` has no dashes and underscores for dashes; None for a positional.
    ``span`` covers name and values.
    """

    name: str | None
    flag: str | None
    values: tuple[Word, ...]
    span: Span

    @property
    def value(self) -> str | None:
        """The first value's exact text, or None."""
        return self.values[0].value if self.values else None


@dataclass(frozen=True, slots=True)
class Target:
    """What the launcher is asked to run.

    ``kind``: ``script``, ``module`` (with -m), ``command`` (a console command, or
    a sub-command of one: ``value`` is then ``llamafactory-cli`` and
    ``subcommand`` the sub-command), ``inline`` (``python -c``), ``none``.
    ``framework`` names the framework whose arguments these are
    (``llamafactory``, ``transformers``, ``swift`` …), None when unknown.
    ``program`` is what its source shows, when it can be read.
    """

    kind: str
    value: str | None
    word: Word | None
    argument_words: tuple[Word, ...] = ()
    arguments: tuple[Argument, ...] = ()
    framework: str | None = None
    subcommand: str | None = None
    subcommand_word: Word | None = None
    interactive: bool | Unknown = Unknown("the program could not be read")
    """Whether it talks to a person or serves requests instead of finishing by itself."""
    exists: bool | Unknown = Unknown("not looked for")
    program: Program | Unknown = Unknown("not read")
    configs: tuple[ConfigFile, ...] = ()
    """Configuration files that the target itself reads: DeepSpeed JSON, LLaMA-Factory YAML …"""

    def argument(self, *names: str) -> Argument | None:
        """The last argument with one of these names (underscore spelling), or None."""
        for argument in reversed(self.arguments):
            if argument.name in names:
                return argument
        return None

    def config(self, role: str) -> ConfigFile | None:
        """The configuration file in a role (``deepspeed``, ``llamafactory``), or None."""
        for config in self.configs:
            if config.role == role:
                return config
        return None


@dataclass(frozen=True, slots=True)
class VisibleDevices:
    """The list of devices that a process can see, in its order.

    ``entries`` are the elements as CUDA reads them: indices as text, UUIDs, MIG
    ids. ``physical`` are nvidia-smi indices, one for each entry,
    :class:`Unknown` where no inventory tells. ``all`` means that no list restricts it.
    """

    entries: tuple[str, ...]
    physical: tuple[int | Unknown, ...]
    all: bool = False


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """One process of the job and the device it would use.

    ``visible_index`` is the ``cuda:N`` it selects inside its visible list;
    ``physical_index`` nvidia-smi's number, ``uuid`` the device's. ``node`` counts from 0.
    """

    rank: int
    local_rank: int
    node: int
    visible_index: int | Unknown
    physical_index: int | Unknown
    uuid: str | Unknown = Unknown("no inventory of GPUs")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks meet. ``port`` 0 means that a free one is chosen at start.

    ``port`` is None when this launch binds none. ``used_by`` says which layer binds it.
    """

    backend: Setting[str]
    address: Setting[str] | None
    port: Setting[int] | None
    used_by: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """Who does the parallel work inside the processes.

    ``name``: ``none``, ``ddp``, ``deepspeed``, ``fsdp``, ``megatron``, ``device_map``, ``data_parallel``.
    ``stage`` is ZeRO's stage for deepspeed.
    """

    name: str
    stage: int | Unknown | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What one command would really do. This is what ``explain`` prints.

    ``processes_per_node``, ``nodes`` and ``world_size`` count; ``device_count``
    is how many devices each node would use. ``visible`` is the list in force for the workers *after* the
    launcher has had its say; ``visible_before`` the list that reached the
    launcher. ``node_rank`` is this node's. ``purpose``: ``train``, ``predict``,
    ``chat``, ``serve``, ``export``, ``evaluate``, ``other``. ``spread``:
    ``replicas`` (one process a card), ``split`` (one model over several cards), ``single``.
    """

    command: Command
    layers: tuple[Layer, ...]
    target: Target
    processes_per_node: Setting[int]
    nodes: Setting[int]
    node_rank: Setting[int]
    world_size: Setting[int]
    visible_before: Setting[VisibleDevices]
    visible: Setting[VisibleDevices]
    rendezvous: Rendezvous | None
    engine: Setting[Engine]
    purpose: Setting[str]
    spread: Setting[str]
    ranks: tuple[RankPlacement, ...] | Unknown
    groups: Setting[bool]
    """Whether the processes form one group (False: each believes that it is alone)."""
    notes: tuple[str, ...] = field(default=())
    """Plain sentences about what would happen that are no fault."""

    def layer(self, *names: str) -> Layer | None:
        """The innermost layer with one of these canonical names, or None."""
        for layer in reversed(self.layers):
            if layer.launcher in names:
                return layer
        return None

    @property
    def distributed_layers(self) -> tuple[Layer, ...]:
        """The layers that start ranks, outermost first (implied ones too)."""
        return tuple(layer for layer in self.layers if layer.launcher in RANK_LAUNCHERS)


TORCHRUN_NAMES = frozenset({"torchrun", "torch.distributed.run", "torch.distributed.launch"})
RANK_LAUNCHERS = frozenset({"accelerate", "deepspeed"}) | TORCHRUN_NAMES
