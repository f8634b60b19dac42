"""Answers about the packages that take part: from installed files first, then from the shipped tables."""

from __future__ import annotations

from mgpu_doctor.knowledge import curated, installed, layout, tables
from mgpu_doctor.knowledge.declared import ParserTable, UnreadableSourceError, with_spellings
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec, Release
from mgpu_doctor.model.version import version_key

PACKAGES = (
    "accelerate", "deepspeed", "torch", "llamafactory", "transformers", "huggingface_hub", "datasets", "peft", "trl",
    "bitsandbytes", "triton", "ms_swift",
)  # fmt: skip
"""The packages with tables, by the name of their data."""

VARIABLE_PACKAGES = (*PACKAGES, "nccl")

OTHER_NAMES = {"nccl": ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")}
"""Distributions that bring a package under another name."""

MODULE_OWNERS = {
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "llamafactory": "llamafactory",
    "swift": "ms_swift",
    "torch": "torch",
    "trl": "trl",
}
"""Top-level module → package."""

FAMILIES = (
    "ACCELERATE_", "CUDA_", "DEEPSPEED_", "DS_", "FSDP_", "HF_", "HUGGINGFACE_", "NCCL_", "PET_", "PYTORCH_", "TORCH_",
    "TORCHELASTIC_", "TRANSFORMERS_",
)  # fmt: skip
"""How the names of variables begin whose readers are tabled."""


class PackageKnowledge:
    """What is known about the packages on a machine, release by release.

    ``facts`` tells versions; ``site_packages`` are the directories of the interpreter's
    packages when they can be read here (those of ``facts`` when none are given). Nothing is read
    before it is asked for, and each thing once. ``notes`` collects what kept an installed file from being used.
    """

    def __init__(self, facts: Facts, site_packages: tuple[str, ...] = ()) -> None:
        self._facts = facts
        self._sites = site_packages or facts.site_packages
        self._distributions: dict[str, installed.Distribution] | None = None
        self._reading: layout.Reading | None = None
        self._releases: dict[str, Release] = {}
        self._parsers: dict[str, ParserTable | Unknown] = {}
        self._fields: dict[tuple[str, str], tuple[OptionSpec, ...] | Unknown] = {}
        self._known: frozenset[str] | None = None
        self.notes: list[str] = []

    def release(self, package: str) -> Release:
        """The release of a package that the reasoning is about (distribution name, e.g. ``accelerate``)."""
        name = installed.normalise(package)
        if name not in self._releases:
            self._releases[name] = self._find_release(name)
        return self._releases[name]

    def _find_release(self, name: str) -> Release:
        for distribution_name in (name, *OTHER_NAMES.get(name, ())):
            version = self._facts.package_version(distribution_name)
            if isinstance(version, str):
                return Release(name, version, self._facts_say(), certain=True)
        distribution = self._installed(name)
        if distribution is not None:
            return Release(name, distribution.version, f"installed in {distribution.site}", certain=True)
        known = tables.releases(_data_name(name))
        if known:
            return Release(name, known[-1], f"no {name} found: the latest known release", certain=False)
        return Release(name, None, f"no {name} found", certain=False)

    def _facts_say(self) -> str:
        origin = self._facts.origin
        return "installed" if origin == "this machine" else f"from {origin}"

    def options(self, launcher: str) -> tuple[OptionSpec, ...] | Unknown:
        """The option table of ``accelerate launch``, ``deepspeed``, ``torchrun`` or ``torch.distributed.launch``."""
        table = self._parser(launcher)
        return table if isinstance(table, Unknown) else table.options

    def allows_abbreviations(self, launcher: str) -> bool:
        """Whether this release's parser takes unambiguous prefixes of long options."""
        table = self._parser(launcher)
        return True if isinstance(table, Unknown) else table.abbreviations

    def releases_with(self, launcher: str, flag: str) -> tuple[str, ...]:
        """The tabled releases whose launcher has an option with this exact spelling, oldest first."""
        name = layout.ALIASES.get(launcher, launcher)
        if name not in layout.LAUNCHERS:
            return ()
        known = tables.releases(layout.LAUNCHERS[name][0])
        parsers = ((version, shipped_parser(name, place)) for place, version in enumerate(known))
        return tuple(
            version
            for version, parser in parsers
            if not isinstance(parser, Unknown) and any(flag in spec.flags for spec in parser.options)
        )

    def _parser(self, launcher: str) -> ParserTable | Unknown:
        name = layout.ALIASES.get(launcher, launcher)
        if name not in self._parsers:
            self._parsers[name] = self._find_parser(name)
        return self._parsers[name]

    def _find_parser(self, launcher: str) -> ParserTable | Unknown:
        if launcher not in layout.LAUNCHERS:
            return Unknown(f"{launcher} is no launcher whose options are known")
        package = layout.LAUNCHERS[launcher][0]
        release = self.release(package)
        if release.version is None:
            return Unknown(f"no release of {package} is known")
        chosen = tables.choose(package, release.version)
        if self._is_readable(release) and not (chosen is not None and self._is_as_released(package, chosen)):
            try:
                from mgpu_doctor.knowledge import static

                return static.read_launcher(launcher, self._read())
            except UnreadableSourceError as error:
                self._note(package, f"the installed {package} could not be read ({error})")
        if chosen is None:
            return Unknown(f"no options of {package} are tabled")
        self._note_nearest(package, chosen)
        return shipped_parser(launcher, chosen.place)

    def fields(self, package: str, group: str | None = None) -> tuple[OptionSpec, ...] | Unknown:
        """Arguments of a framework's dataclass parser, all spellings included.

        ``("llamafactory", "train" | "infer" | "eval")``: those of that parser, for ``train`` those of
        transformers' ``Seq2SeqTrainingArguments`` first; ``("transformers", class name)``.
        """
        key = (installed.normalise(package), group or ("train" if package == "llamafactory" else "TrainingArguments"))
        if key not in self._fields:
            self._fields[key] = self._find_fields(*key)
        return self._fields[key]

    def _find_fields(self, package: str, group: str) -> tuple[OptionSpec, ...] | Unknown:
        if package == "transformers":
            return self._training_arguments(group, self.release("transformers"))
        if package != "llamafactory":
            return Unknown(f"the arguments of {package} are not tabled")
        own = self._own_fields(group)
        if isinstance(own, Unknown):
            return own
        transformers = self._transformers_for_llamafactory()
        dashes = self._dashes(transformers)
        mine = with_spellings(own, dashes)
        if group != "train":
            return mine
        theirs = self._training_arguments("Seq2SeqTrainingArguments", transformers)
        if isinstance(theirs, Unknown):
            return theirs
        replaced = {spec.dest for spec in own}
        return (*(spec for spec in theirs if spec.dest not in replaced), *mine)

    def _own_fields(self, group: str) -> tuple[OptionSpec, ...] | Unknown:
        release = self.release("llamafactory")
        if release.version is None:
            return Unknown("no release of llamafactory is known")
        chosen = tables.choose("llamafactory", release.version)
        if self._is_readable(release) and not (chosen is not None and self._is_as_released("llamafactory", chosen)):
            try:
                from mgpu_doctor.knowledge import static

                return static.read_llamafactory(self._read(), group)
            except (UnreadableSourceError, KeyError) as error:
                self._note("llamafactory", f"the installed llamafactory could not be read ({error})")
        if chosen is None:
            return Unknown("no arguments of llamafactory are tabled")
        self._note_nearest("llamafactory", chosen)
        found = layout.tabled_llamafactory(group, chosen.place)
        return found if found is not None else Unknown(f"llamafactory {chosen.version} has no parser {group!r}")

    def _training_arguments(self, class_name: str, release: Release) -> tuple[OptionSpec, ...] | Unknown:
        if release.version is None:
            return Unknown("no release of transformers is known")
        dashes = self._dashes(release)
        chosen = tables.choose("transformers", release.version)
        if self._is_readable(release) and not (chosen is not None and self._is_as_released("transformers", chosen)):
            try:
                from mgpu_doctor.knowledge import static

                return with_spellings(static.read_training_arguments(self._read(), class_name), dashes)
            except UnreadableSourceError as error:
                self._note("transformers", f"the installed transformers could not be read ({error})")
        if chosen is None:
            return Unknown("no arguments of transformers are tabled")
        self._note_nearest("transformers", chosen)
        own = tables.options("transformers", "fields:TrainingArguments", chosen.place) or ()
        if class_name == "Seq2SeqTrainingArguments":
            more = tables.options("transformers", "fields:Seq2SeqTrainingArguments", chosen.place) or ()
            replaced = {spec.dest for spec in more}
            own = (*(spec for spec in own if spec.dest not in replaced), *more)
        elif class_name != "TrainingArguments":
            return Unknown(f"the class {class_name} of transformers is not tabled")
        return with_spellings(own, dashes)

    def _dashes(self, release: Release) -> bool:
        """Whether this release of transformers takes ``--some-name`` for a field ``some_name``."""
        chosen = tables.choose("transformers", release.version) if release.version is not None else None
        return chosen is None or tables.values("transformers", "dashes", chosen.place) != ("no",)

    def _transformers_for_llamafactory(self) -> Release:
        """The release of transformers at hand; where none is known, the newest that LLaMA-Factory's pins allow."""
        release = self.release("transformers")
        if release.certain:
            return release
        of = self.release("llamafactory")
        chosen = tables.choose("llamafactory", of.version) if of.version is not None else None
        pins = tables.values("llamafactory", "requires", chosen.place) if chosen is not None else None
        newest = _newest_allowed("transformers", pins or ())
        return (
            release
            if newest is None
            else Release("transformers", newest, f"the newest that {of.package} allows", False)
        )

    def subcommands(self, package: str) -> tuple[str, ...] | Unknown:
        """Sub-commands of a console command (``llamafactory``, ``ms-swift``); those that only raise are left out."""
        name = installed.normalise(package)
        release = self.release(name)
        if self._is_readable(release):
            from mgpu_doctor.knowledge import static

            found = static.read_subcommands(_data_name(name), self._read())
            if found:
                return found
        chosen = tables.choose(_data_name(name), release.version) if release.version is not None else None
        held = tables.values(_data_name(name), "subcommands", chosen.place) if chosen is not None else None
        return held if held is not None else Unknown(f"no sub-commands of {package} are tabled")

    def console_scripts(self, package: str) -> tuple[str, ...]:
        """Console commands that a distribution installs."""
        name = installed.normalise(package)
        distribution = self._installed(name)
        if distribution is not None:
            return tuple(sorted(installed.entry_points(distribution, "console_scripts")))
        release = self.release(name)
        chosen = tables.choose(_data_name(name), release.version) if release.version is not None else None
        return (tables.values(_data_name(name), "scripts", chosen.place) or ()) if chosen is not None else ()

    def script_owner(self, command: str) -> str | None:
        """The distribution that installs a console command, None when no known one does."""
        for package in PACKAGES:
            if command in tables.all_values(package, "scripts"):
                return installed.normalise(package)
        self._installed("")
        for name, distribution in (self._distributions or {}).items():
            if command in installed.entry_points(distribution, "console_scripts"):
                return name
        return None

    def module_kind(self, module: str) -> str | Unknown:
        """What ``python -m MODULE`` would find; see :class:`mgpu_doctor.model.knowledge.Knowledge`.

        Where the release is assumed or not tabled, only what all tabled releases agree on is told.
        """
        top = module.partition(".")[0]
        package = MODULE_OWNERS.get(top)
        if package is None:
            return Unknown(f"which distribution has the module {top} is not known")
        release = self.release(package)
        if self._is_readable(release):
            return layout.kind_of(module, self._read().roots)
        if not _is_tabled_module(module, package):
            return Unknown(f"the modules of {top} are not all tabled")
        chosen = tables.choose(package, release.version) if release.version is not None else None
        if chosen is None:
            return Unknown(f"no modules of {package} are tabled")
        if release.certain and chosen.exact:
            return _tabled_kind(package, module, chosen.place)
        kinds = {_tabled_kind(package, module, place) for place in range(len(tables.releases(package)))}
        if len(kinds) == 1:
            return kinds.pop()
        return Unknown(f"releases of {package} differ in {module}")

    def variable_readers(self, name: str) -> tuple[str, ...] | Unknown:
        """The packages (with version) that read an environment variable; empty when known that none does.

        A package that is not known to be absent counts in the release that the reasoning is about. Unknown
        where the name stands in a package's source without being seen read, and for names of no known family.
        """
        found = list(curated.readers_of(name))
        for package in VARIABLE_PACKAGES:
            release = self.release(package)
            data = f"{package}.variables"
            chosen = tables.choose(data, release.version) if release.version is not None else None
            if chosen is None:
                continue
            held = tables.values(data, "variables", chosen.place) or ()
            if any(_is_named(name, text) for text in held):
                found.append(f"{package} {release.version}")
        if found:
            return tuple(dict.fromkeys(found))
        if name in self._mentioned():
            return Unknown(f"{name} stands in a package's source, but how it is used cannot be told")
        if not name.startswith(FAMILIES):
            return Unknown(f"{name} is no name of a known family of variables")
        return ()

    def known_variables(self) -> frozenset[str]:
        """Every environment variable that some known release of a package reads or mentions."""
        if self._known is None:
            found: set[str] = set(curated.all_names())
            for package in VARIABLE_PACKAGES:
                found |= tables.all_values(f"{package}.variables", "variables")
            options = self.options("torchrun")
            if not isinstance(options, Unknown):
                found |= {f"PET_{spec.dest.upper()}" for spec in options if spec.action == "env"}
            self._known = frozenset(name for name in found if not name.endswith("*")) | self._mentioned()
        return self._known

    def _mentioned(self) -> frozenset[str]:
        return frozenset().union(
            *(tables.all_values(f"{package}.variables", "mentioned") for package in VARIABLE_PACKAGES)
        )

    def _note_nearest(self, package: str, chosen: tables.Chosen) -> None:
        if not chosen.exact:
            self._note(package, f"arguments are those of {package} {chosen.version}, the nearest tabled release")

    def _is_readable(self, release: Release) -> bool:
        """Whether the files of exactly this release lie here."""
        distribution = self._installed(release.package)
        if distribution is None or release.version is None:
            return False
        return version_key(distribution.version) == version_key(release.version)

    def _is_as_released(self, package: str, chosen: tables.Chosen) -> bool:
        """Whether the installed files are those that the table was made from: then nothing has to be parsed."""
        if not chosen.exact:
            return False
        digests = tables.provenance(package, chosen.version)
        reading = self._read()
        for relative, digest in digests.items():
            text = reading.file(relative)
            if text is None or tables.digest(text) != digest:
                return False
        return bool(digests)

    def _note(self, package: str, note: str) -> None:
        if note in self.notes:
            return
        self.notes.append(note)
        release = self._releases[package]
        self._releases[package] = Release(package, release.version, f"{release.why}; {note}", release.certain)

    def _installed(self, name: str) -> installed.Distribution | None:
        if self._distributions is None:
            self._distributions = installed.find_distributions(self._sites)
        return self._distributions.get(name)

    def _read(self) -> layout.Reading:
        if self._reading is None:
            self._reading = layout.Reading(installed.source_roots(self._sites))
        return self._reading


def shipped_parser(launcher: str, index: int) -> ParserTable | Unknown:
    """The tabled parser of a launcher in the release with this index."""
    package = layout.LAUNCHERS[launcher][0]
    options = tables.options(package, launcher, index)
    if options is None:
        return Unknown(f"no options of {launcher} are tabled for {package} {tables.releases(package)[index]}")
    return ParserTable(options, tables.values(package, f"{launcher}:abbreviations", index) != ("no",))


def _newest_allowed(package: str, requirements: tuple[str, ...]) -> str | None:
    """The newest tabled release of a package within the upper bound of some requirements; None without one."""
    import re

    for requirement in requirements:
        match = re.match(rf"{re.escape(package)}\b.*?<(=?)\s*([0-9][0-9.]*)", requirement)
        if match is None:
            continue
        bound = version_key(match[2])
        allowed = [
            version
            for version in tables.releases(package)
            if version_key(version) < bound or (match[1] and version_key(version) == bound)
        ]
        return allowed[-1] if allowed else None
    return None


def _is_tabled_module(module: str, package: str) -> bool:
    roots = [root.replace("/", ".") for root in layout.MODULE_ROOTS.get(package, ())]
    return any(module == root or module.startswith(f"{root}.") or module == root.partition(".")[0] for root in roots)


def _tabled_kind(package: str, module: str, place: int) -> str:
    for line in tables.values(package, "modules", place) or ():
        name, _, kind = line.partition(" ")
        if name == module:
            return kind
    return "missing"


def _is_named(name: str, read: str) -> bool:
    return name.startswith(read[:-1]) if read.endswith("*") else name == read


def _data_name(distribution: str) -> str:
    return installed.normalise(distribution).replace("-", "_")
