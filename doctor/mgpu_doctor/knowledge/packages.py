"""Answers about the packages that take part: from installed files first, then from the shipped tables."""

from __future__ import annotations

from mgpu_doctor.knowledge import installed, layout, tables
from mgpu_doctor.knowledge.reader import ParserTable, UnreadableSourceError
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec, Release


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
        self.notes: list[str] = []

    def release(self, package: str) -> Release:
        """The release of a package that the reasoning is about (distribution name, e.g. ``accelerate``)."""
        name = installed.normalise(package)
        if name not in self._releases:
            self._releases[name] = self._find_release(name)
        return self._releases[name]

    def _find_release(self, name: str) -> Release:
        version = self._facts.package_version(name)
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
                return layout.read_launcher(launcher, self._read())
            except UnreadableSourceError as error:
                self._note(package, f"the installed {package} could not be read ({error})")
        if chosen is None:
            return Unknown(f"no options of {package} are tabled")
        if not chosen.exact:
            self._note(package, f"options are those of {package} {chosen.version}, the nearest tabled release")
        return shipped_parser(launcher, chosen.place)

    def fields(self, package: str, group: str | None = None) -> tuple[OptionSpec, ...] | Unknown:
        """Arguments of a framework's dataclass parser; see :class:`mgpu_doctor.model.knowledge.Knowledge`."""
        return Unknown(f"no arguments of {package} {group or ''} are tabled")

    def subcommands(self, package: str) -> tuple[str, ...] | Unknown:
        """Sub-commands of a console command (``llamafactory``)."""
        return Unknown(f"no sub-commands of {package} are tabled")

    def console_scripts(self, package: str) -> tuple[str, ...]:  # noqa: ARG002
        """Console commands that a distribution installs."""
        return ()

    def script_owner(self, command: str) -> str | None:  # noqa: ARG002
        """The distribution that installs a console command, None when no known one does."""
        return None

    def module_kind(self, module: str) -> str | Unknown:
        """What ``python -m MODULE`` would find."""
        return Unknown(f"nothing is known about {module}")

    def variable_readers(self, name: str) -> tuple[str, ...] | Unknown:
        """The packages (with version) that read an environment variable; empty when known that none does."""
        return Unknown(f"nothing is known about {name}")

    def known_variables(self) -> frozenset[str]:
        """Every environment variable that some known package reads."""
        return frozenset()

    def _is_readable(self, release: Release) -> bool:
        """Whether the files of exactly this release lie here."""
        distribution = self._installed(release.package)
        if distribution is None or release.version is None:
            return False
        return tables.version_key(distribution.version) == tables.version_key(release.version)

    def _is_as_released(self, package: str, chosen: tables.Chosen) -> bool:
        """Whether the installed files are those that the table was made from: then nothing has to be parsed."""
        import hashlib

        if not chosen.exact:
            return False
        digests = tables.provenance(package, chosen.version)
        reading = self._read()
        for relative, digest in digests.items():
            text = reading.file(relative)
            if text is None or hashlib.sha256(text.encode()).hexdigest() != digest:
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


def _data_name(distribution: str) -> str:
    return distribution.replace("-", "_")
