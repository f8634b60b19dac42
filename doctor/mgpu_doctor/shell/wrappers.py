"""Commands that only start another command: where their own words end, and what they do to its environment.

The tables name the options that take a value as the next word. Sources: coreutils 9.1 (env, nice,
nohup, stdbuf, timeout), util-linux 2.38 (ionice, setsid, taskset, flock, chrt), sudo 1.9.13, OpenSSH 9.2
ssh(1), Slurm 24.05
srun(1), Open MPI 4.1/5.0 and MPICH 4 mpirun(1), Docker 27 ``docker run --help``, SingularityCE 4.1 / Apptainer 1.3
``exec --help``, kubectl 1.30, conda 24, uv 0.5, numactl 2.0.16, bash 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.shell.state import FieldWord

_ASSIGNED = pattern(r"[A-Za-z_]\w*=", re.ASCII)


@dataclass(frozen=True, slots=True)
class Effect:
    """A change of the environment: ``set`` and ``unset`` a name, ``clear`` it, ``cut`` off all but ``kept`` names.

    For ``set`` the value begins at ``offset`` in ``word``'s text; a bare name passes the caller's value on.
    """

    kind: str
    name: str = ""
    word: FieldWord | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Peeled:
    """A wrapper in front of a command.

    ``own`` counts its words; ``text`` is the index of a word that holds shell text, when it starts
    a shell; ``arguments`` the index of the words behind that text. ``place`` is where the command runs when
    that is not here;
    ``directory`` the word that names the directory it runs in.
    """

    name: str
    own: int
    effects: tuple[Effect, ...] = ()
    text: int | None = None
    arguments: int | None = None
    place: str | None = None
    directory: FieldWord | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """A wrapper's options and operands.

    ``values`` take the next word; ``skip`` counts operands before the command; ``assignments``
    says whether NAME=value words may stand before it; ``until`` names a word that ends the options (``--``).
    """

    values: frozenset[str] = frozenset()
    skip: int = 0
    assignments: bool = False


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SRUN = _names(
    "-A --account --acctg-freq -a --accel-bind -b --bcast --begin -B --extra-node-info --bb --bbf --bcast-exclude"
    " -c --cpus-per-task --cluster-constraint --clusters -M -C --constraint --container --container-id --core-spec -S"
    " --comment --compress --cores-per-socket --cpu-bind --cpu-freq --cpus-per-gpu -d --dependency "
    "-D --chdir -e --error"
    " --epilog --exclude -x --export --export-file --extra --gid --gpu-bind --gpu-freq --gpus -G --gpus-per-node"
    " --gpus-per-socket --gpus-per-task --gres --gres-flags --hint --het-group -i --input -I --jobid -J --job-name"
    " --kill-on-bad-exit --licenses -L --mail-type --mail-user --mcs-label --mem --mem-bind --mem-per-cpu"
    " --mem-per-gpu --mincpus --mpi --msg-timeout -m --distribution -N --nodes -n --ntasks --network --nice"
    " --nodefile -F --nodelist -w --ntasks-per-core --ntasks-per-gpu --ntasks-per-node --tasks-per-node"
    " --ntasks-per-socket -o --output --open-mode -p --partition --power --prefer --priority "
    "--profile --prolog -q --qos"
    " -r --relative --reservation --resv-ports --send-libs --signal --sockets-per-node --slurmd-debug --spread-job"
    " --switches --task-epilog --task-prolog --thread-spec --threads -T --threads-per-core --time -t --time-min --tmp"
    " --tres-bind --tres-per-task --uid --wait -W --wckey --wait-for-children"
    " --container-image --container-mounts --container-name --container-workdir --container-save"
    " --container-env --container-entrypoint-log"
) - _names(
    "-a -b -I --spread-job --wait-for-children --container-entrypoint-log --resv-ports --nice "
    "--compress --send-libs --kill-on-bad-exit --bcast"
)
_MPI = _names(
    "-n -np --np -c --n -N -npernode --npernode -npersocket --npersocket -H -host --host -hosts "
    "--hosts -f -hostfile --hostfile"
    " -machinefile --machinefile --default-hostfile -default-hostfile -x -wdir --wdir -wd --wd -path "
    "--path --prefix -prefix"
    " --map-by -map-by --bind-to -bind-to --rank-by -rank-by -cpus-per-proc --cpus-per-proc --cpus-per-rank"
    " -cpus-per-rank -rf --rankfile -rankfile -output-filename --output-filename --output -output "
    "--timeout -timeout -max-restarts"
    " -ppn --ppn -perhost -grr -env -genvlist -envlist -genvexcl -launcher -rmk -iface -bootstrap -bootstrap-exec"
    " -configfile -app --app -am --am -tune --tune -cpu-set --cpu-set --cpu-list -cpu-list --report-state-on-timeout"
    " --xterm -xterm --stdin -stdin -tmpdir --tmpdir -outfile-pattern -errfile-pattern -prepend-pattern -exitcode"
    " --personality --runtime-options --show-progress-interval --dvm -plm --with-pmix -order-nodes -arch"
) - _names("-env --show-progress-interval")
_MPI_TWO = _names("-mca --mca -gmca --gmca --omca --prtemca --pmixmca -genv -env --genv --env")
_DOCKER = _names(
    "-a --attach --add-host --annotation --blkio-weight --blkio-weight-device -c --cpu-shares --cap-add --cap-drop"
    " --cgroup-parent --cgroupns --cidfile --cpu-count --cpu-percent --cpu-period --cpu-quota "
    "--cpu-rt-period --cpu-rt-runtime"
    " --cpus --cpuset-cpus --cpuset-mems --device --device-cgroup-rule --device-read-bps --device-read-iops"
    " --device-write-bps --device-write-iops --dns --dns-opt --dns-option --dns-search --domainname -e --env --env-file"
    " --entrypoint --expose --gpus --group-add --health-cmd --health-interval --health-retries --health-timeout"
    " --health-start-period -h --hostname --ip --ip6 --ipc --isolation --kernel-memory -l --label --label-file --link"
    " --link-local-ip --log-driver --log-opt --mac-address -m --memory --memory-reservation --memory-swap"
    " --memory-swappiness --mount --name --net --net-alias --network --network-alias --oom-score-adj --pid"
    " --pids-limit --platform -p --publish --pull --restart --runtime --security-opt --shm-size --stop-signal"
    " --stop-timeout --storage-opt --sysctl --tmpfs -u --user --ulimit --userns --uts -v --volume --volume-driver"
    " --volumes-from -w --workdir --detach-keys --arch --authfile --hooks-dir --secret --systemd --timezone --tz"
)
_APPTAINER = _names(
    "-B --bind --env --env-file --pwd --cwd -W --workdir -H --home -S --scratch -o --overlay --app "
    "--add-caps --drop-caps"
    " --apply-cgroups --cpus --cpuset-cpus --cpuset-mems --dns --docker-host --fusemount --hostname "
    "--memory --memory-swap"
    " --mount --network --network-args --pem-path --pids-limit --security --blkio-weight "
    "--blkio-weight-device --cpu-shares"
    " --memory-reservation --oom-kill-disable --authfile"
) - _names("--oom-kill-disable")
_SSH = _names("-B -b -c -D -E -e -F -I -i -J -L -l -m -O -o -p -Q -R -S -W -w -P")
_UV = _names(
    "--extra --group --no-group --only-group --no-extra --env-file --with --with-editable "
    "--with-requirements -w -p --python"
    " --package --index --default-index -i --index-url --extra-index-url -f --find-links --cache-dir "
    "--directory --project"
    " --config-file --refresh-package -P --upgrade-package --reinstall-package --resolution --prerelease --link-mode"
    " --no-build-package --no-binary-package -C --config-setting --exclude-newer --keyring-provider "
    "--color --from --index-strategy"
)

SIMPLE = {
    "nohup": Options(),
    "time": Options(_names("-f --format -o --output")),
    "exec": Options(_names("-a")),
    "command": Options(),
    "builtin": Options(),
    "setsid": Options(),
    "nice": Options(_names("-n --adjustment")),
    "ionice": Options(_names("-c --class -n --classdata")),
    "stdbuf": Options(_names("-i -o -e --input --output --error")),
    "timeout": Options(_names("-k --kill-after -s --signal"), skip=1),
    "taskset": Options(skip=1),
    "chrt": Options(skip=1),
    "flock": Options(_names("-w --wait --timeout -E --conflict-exit-code"), skip=1),
    "numactl": Options(
        _names("-N --cpunodebind -C --physcpubind -m --membind -i --interleave -p --preferred -w -P -c")
    ),
    "xvfb-run": Options(
        _names("-n --server-num -e --error-file -f --auth-file -p --xauth-protocol -s --server-args -w --wait")
    ),
    "unbuffer": Options(),
    "proxychains": Options(_names("-f")),
    "proxychains4": Options(_names("-f")),
    "catchsegv": Options(),
    "caffeinate": Options(_names("-t -w")),
    "conda run": Options(_names("-n --name -p --prefix --cwd")),
    "mamba run": Options(_names("-n --name -p --prefix --cwd")),
    "micromamba run": Options(_names("-n --name -p --prefix --cwd -r --root-prefix -a --attach -e --env --label")),
    "uv run": Options(_UV),
    "uv tool run": Options(_UV),
    "uvx": Options(_UV),
    "poetry run": Options(_names("-C --directory -P --project")),
    "pipenv run": Options(),
    "pdm run": Options(_names("-p --project")),
    "hatch run": Options(),
    "pixi run": Options(_names("-e --environment --manifest-path")),
    "rye run": Options(),
    "pipx run": Options(_names("--spec --python --pip-args --index-url --backend")),
    "dotenv run": Options(),
    "doppler run": Options(_names("-p --project -c --config")),
    "nsys profile": Options(
        _names(
            "-t --trace -o --output -c --capture-range -d --duration -y --delay -s --sample -e "
            "--env-var -f --force-overwrite"
            " -w --show-output -x --stop-on-exit -k --kill --capture-range-end --cuda-memory-usage --cudabacktrace"
            " --gpu-metrics-device --gpu-metrics-devices --nic-metrics --stats --python-sampling "
            "--python-backtrace -b --backtrace"
            " --cuda-graph-trace --session-new --sampling-period --cpuctxsw --run-as "
            "--trace-fork-before-exec --export -n"
            " --inherit-environment --pytorch --cuda-flush-interval --gpuctxsw --osrt-threshold --wait"
        )
    ),
    "ncu": Options(
        _names(
            "-o --export --set --section --metrics -k --kernel-name -c --launch-count -s "
            "--launch-skip --target-processes --nvtx-include --replay-mode"
        )
    ),
    "srun": Options(_SRUN),
    "docker run": Options(_DOCKER, skip=1),
    "docker exec": Options(_names("-e --env --env-file -u --user -w --workdir --detach-keys"), skip=1),
    "docker compose run": Options(_DOCKER, skip=1),
    "docker compose exec": Options(_names("-e --env -u --user -w --workdir --index"), skip=1),
    "singularity": Options(_APPTAINER, skip=1),
    "apptainer": Options(_APPTAINER, skip=1),
    "enroot start": Options(_names("-m --mount -e --env -c --conf --rc -r"), skip=1),
    "kubectl exec": Options(
        _names("-c --container -n --namespace -f --filename --context --kubeconfig --pod-running-timeout"), skip=1
    ),
    "ray job submit": Options(
        _names(
            "--address --job-id --submission-id --runtime-env --runtime-env-json --working-dir --metadata-json"
            " --entrypoint-num-cpus --entrypoint-num-gpus --entrypoint-memory --entrypoint-resources "
            "--log-style --log-color --headers --verify"
        )
    ),
    "ssh": Options(_SSH, skip=1),
    "sudo": Options(
        _names(
            "-u --user -g --group -C --close-from -D --chdir -h --host -p --prompt -R --chroot -r "
            "--role -t --type -T --command-timeout -U --other-user"
        ),
        assignments=True,
    ),
    "doas": Options(_names("-u -C")),
    "su": Options(_names("-g --group -G --supp-group -s --shell -w --whitelist-environment")),
}
"""Wrappers with the options that take a value as a word of their own."""

_ALIASES = {
    "podman run": "docker run",
    "nvidia-docker run": "docker run",
    "nerdctl run": "docker run",
    "podman exec": "docker exec",
    "nvidia-docker exec": "docker exec",
    "nerdctl exec": "docker exec",
    "docker-compose run": "docker compose run",
    "docker-compose exec": "docker compose exec",
    "docker container run": "docker run",
    "docker container exec": "docker exec",
    "oc exec": "kubectl exec",
}
_MPIS = frozenset({"mpirun", "mpiexec", "orterun", "mpiexec.hydra", "prterun"})
_TWO_WORDS = frozenset(
    {
        "conda",
        "mamba",
        "micromamba",
        "uv",
        "poetry",
        "pipenv",
        "pdm",
        "hatch",
        "pixi",
        "rye",
        "pipx",
        "dotenv",
        "doppler",
        "nsys",
        "docker",
        "podman",
        "nvidia-docker",
        "nerdctl",
        "docker-compose",
        "enroot",
        "kubectl",
        "oc",
        "ray",
    }
)
_BEFORE_SUBCOMMAND = _names(
    "-n --namespace --context --project --directory -C -f --file -p --project-name -H --host --log-level"
)
SHELLS = frozenset({"bash", "sh", "zsh", "dash", "ksh"})
_CONTAINERS = frozenset(
    {"docker run", "docker exec", "docker compose run", "docker compose exec", "enroot start", "kubectl exec"}
)
_KNOWN_STARTS = frozenset(
    {
        "python",
        "python3",
        "torchrun",
        "accelerate",
        "accelerate-launch",
        "deepspeed",
        "llamafactory-cli",
        "bash",
        "sh",
        "env",
        "singularity",
        "apptainer",
        "numactl",
        "swift",
    }
)


def base_name(text: str) -> str:
    """The last part of a program's path."""
    return text.rsplit("/", 1)[-1]


def peel(words: Sequence[FieldWord]) -> Peeled | None:  # noqa: C901 - one branch for each form
    """The wrapper that these words begin with, None when they begin with none or start nothing."""
    first = words[0].value if words else None
    if first is None:
        return None
    name = base_name(first)
    if name == "env":
        return _env(words)
    if name in SHELLS:
        return _shell(words, name)
    if name in _MPIS:
        return _mpi(words, name)
    if name in ("singularity", "apptainer"):
        return _apptainer(words, name)
    named = 1
    if name in _TWO_WORDS:
        found = _sub_command(words, name)
        if found is None:
            return None
        name, named = found
    table = SIMPLE.get(_ALIASES.get(name, name))
    if table is None:
        return None
    if name in ("ssh", "su"):
        return _ssh(words, table) if name == "ssh" else _su(words, table)
    if name in ("command", "builtin") and len(words) > 1 and words[1].value in ("-v", "-V"):
        return None
    end, effects, options = _read(words, named, table)
    canonical = _ALIASES.get(name, name)
    if canonical in _CONTAINERS:
        return _container(words, name, canonical, end, options)
    if name in ("sudo", "doas"):
        return _sudo(words, end, effects, options, name)
    if name == "srun":
        effects = [*effects, *_srun_export(options)]
    if end >= len(words):
        return None
    directory = next((word for flag, word in options if flag in ("-D", "--chdir", "--cwd") and name != "exec"), None)
    return Peeled(
        name, end, tuple(effects), directory=directory if name in ("srun", "conda run", "mamba run") else None
    )


def _sub_command(words: Sequence[FieldWord], name: str) -> tuple[str, int] | None:
    """``docker`` [options] ``run`` and the like: the full name and how many words it takes."""
    at = 1
    parts = [name]
    while at < len(words) and len(parts) < 4:
        value = words[at].value
        if value is None:
            return None
        if value.startswith("-"):
            at += 2 if value in _BEFORE_SUBCOMMAND and len(parts) == 1 else 1
            continue
        parts.append(value)
        at += 1
        joined = " ".join(parts)
        if joined in SIMPLE or joined in _ALIASES:
            return joined, at
    return None


def _read(  # noqa: C901 - one branch for each form
    words: Sequence[FieldWord], named: int, table: Options
) -> tuple[int, list[Effect], list[tuple[str, FieldWord | None]]]:
    """Where the started command begins, the assignments before it, and the options with their values."""
    at = named
    left = table.skip
    effects: list[Effect] = []
    options: list[tuple[str, FieldWord | None]] = []
    while at < len(words):
        word = words[at]
        value = word.value
        if value == "--":
            at += 1
            if left and table.skip and not table.assignments:
                at += left
            return at, effects, options
        shown = value if value is not None else word.bits[0].text or "" if word.bits else ""
        if value is None and word.splits and not shown.startswith("-"):
            # Options kept in a variable: what follows tells where the command begins.
            if at + 1 >= len(words):
                return at, effects, options
            at += 1
            if not left or not _starts(words[at]):
                continue
            return at, effects, options
        if shown.startswith("-") and len(shown) > 1:
            flag, equals, _ = shown.partition("=")
            if equals and flag.startswith("--"):
                options.append((flag, _tail(word, len(flag) + 1)))
                at += 1
            elif shown in table.values:
                options.append((shown, words[at + 1] if at + 1 < len(words) else None))
                at += 2
            elif not shown.startswith("--") and shown[:2] in table.values:
                options.append((shown[:2], _tail(word, 2)))
                at += 1
            elif (
                not shown.startswith("--")
                and len(shown) > 2
                and f"-{shown[-1]}" in table.values
                and shown[1:].isalpha()
            ):
                options.append((f"-{shown[-1]}", words[at + 1] if at + 1 < len(words) else None))
                at += 2
            else:
                options.append((shown, None))
                at += 1
            continue
        if table.assignments and _ASSIGNED.match(shown):
            effects.append(Effect("set", shown.split("=", 1)[0], word, shown.index("=") + 1))
            at += 1
            continue
        if left:
            left -= 1
            at += 1
            continue
        return at, effects, options
    return at, effects, options


def _starts(word: FieldWord) -> bool:
    value = word.value
    return value is not None and base_name(value) in _KNOWN_STARTS


def _tail(word: FieldWord, offset: int) -> FieldWord:
    """The word without its first characters."""
    bits = []
    for bit in word.bits:
        text = bit.text
        if offset and text is not None:
            taken = min(offset, len(text))
            offset -= taken
            if taken == len(text):
                continue
            place = bit.place
            if place is not None and bit.exact:
                place = replace(place, start=place.start + taken)
            bit = replace(bit, text=text[taken:], written=text[taken:], place=place)  # noqa: PLW2901 - the rest of the word
        bits.append(bit)
    place = bits[0].place if bits else None
    start = place.start if place is not None and place.excerpt is word.excerpt else word.start
    return replace(word, bits=tuple(bits), start=min(start, word.end))


def tail(word: FieldWord, offset: int) -> FieldWord:
    """The word without its first ``offset`` characters (which are known)."""
    return _tail(word, offset)


def _env(words: Sequence[FieldWord]) -> Peeled | None:  # noqa: C901 - one branch for each form
    at = 1
    effects: list[Effect] = []
    directory = None
    while at < len(words):
        word = words[at]
        value = word.value
        shown = value if value is not None else word.bits[0].text or "" if word.bits else ""
        if shown in ("-i", "-", "--ignore-environment"):
            effects.append(Effect("clear"))
            at += 1
        elif shown in ("-u", "--unset") and at + 1 < len(words):
            effects.append(Effect("unset", words[at + 1].value or "", words[at + 1]))
            at += 2
        elif shown.startswith("--unset=") or (shown.startswith("-u") and len(shown) > 2):
            effects.append(Effect("unset", shown[8:] if shown.startswith("--") else shown[2:], word))
            at += 1
        elif shown in ("-C", "--chdir") and at + 1 < len(words):
            directory = words[at + 1]
            at += 2
        elif shown.startswith("--chdir="):
            directory = _tail(word, 8)
            at += 1
        elif shown in ("-S", "--split-string", "-vS") and at + 1 < len(words):
            return Peeled("env -S", at + 1, tuple(effects), text=at + 1, arguments=at + 2)
        elif shown == "--" or (shown.startswith("-") and len(shown) > 1):
            at += 1
        elif _ASSIGNED.match(shown):
            effects.append(Effect("set", shown.split("=", 1)[0], word, shown.index("=") + 1))
            at += 1
        elif value is None and word.splits:
            at += 1
        else:
            break
    if at >= len(words):
        return None
    return Peeled("env", at, tuple(effects), directory=directory)


def _shell(words: Sequence[FieldWord], name: str) -> Peeled | None:
    """``bash -c TEXT``: a shell with text. A shell that runs a file is no wrapper."""
    at = 1
    while at < len(words):
        value = words[at].value
        if value is None:
            return None
        if value in ("-o", "+o", "-O", "+O", "--rcfile", "--init-file"):
            at += 2
            continue
        if not value.startswith(("-", "+")) or value in ("-", "--"):
            return None
        at += 1
        if not value.startswith("--") and "c" in value:
            while at < len(words) and (words[at].value or "").startswith("-") and (words[at].value or "") != "-":
                at += 2 if words[at].value == "-o" else 1
            if at < len(words):
                return Peeled("bash -c" if name == "bash" else f"{name} -c", at, text=at, arguments=at + 1)
            return None
    return None


def _mpi(words: Sequence[FieldWord], name: str) -> Peeled | None:
    at = 1
    effects: list[Effect] = []
    while at < len(words):
        word = words[at]
        value = word.value
        shown = value if value is not None else word.bits[0].text or "" if word.bits else ""
        if value is None and word.splits and not shown.startswith("-"):
            at += 1
            continue
        if not shown.startswith("-"):
            break
        if shown in ("-x", "-genv", "-env", "--genv", "--env"):
            given = words[at + 1] if at + 1 < len(words) else None
            text = given.value if given is not None else None
            bits = given.bits if given is not None else ()
            start = text if text is not None else (bits[0].text or "" if bits else "")
            if given is not None and "=" in start:
                effects.append(Effect("set", start.split("=", 1)[0], given, start.index("=") + 1))
                at += 2
            elif shown != "-x" and at + 2 < len(words):
                effects.append(Effect("set", text or "", words[at + 2], 0))
                at += 3
            else:
                effects.append(Effect("pass", text or ""))
                at += 2
        elif shown in _MPI_TWO:
            at += 3
        elif shown in _MPI:
            at += 2
        else:
            at += 1
    if at >= len(words):
        return None
    return Peeled(name, at, tuple(effects))


def _apptainer(words: Sequence[FieldWord], name: str) -> Peeled | None:
    at = 1
    while at < len(words) and (words[at].value or "").startswith("-"):
        at += 1
    if at >= len(words) or words[at].value != "exec":
        return None
    end, effects, options = _read(words, at + 1, SIMPLE[name])
    if end >= len(words):
        return None
    for flag, _ in options:
        if flag in ("-e", "--cleanenv", "-c", "--containall", "-C"):
            effects.append(Effect("clear"))
    effects += _given(options, ("--env",), split=True)
    directory = next((word for flag, word in options if flag in ("--pwd", "--cwd")), None)
    return Peeled(
        f"{name} exec", end, tuple(effects), directory=directory, place="inside a container" if directory else None
    )


def _given(
    options: Sequence[tuple[str, FieldWord | None]], flags: tuple[str, ...], *, split: bool = False
) -> list[Effect]:
    """Variables that options like ``-e NAME=value`` set."""
    out = []
    for flag, word in options:
        if flag not in flags or word is None:
            continue
        text = word.value
        start = text if text is not None else (word.bits[0].text or "" if word.bits else "")
        if "=" not in start:
            out.append(Effect("pass", start))
        elif not split or "," not in start:
            out.append(Effect("set", start.split("=", 1)[0], word, start.index("=") + 1))
        elif text is not None:
            out.extend(Effect("unknown", part.split("=", 1)[0]) for part in text.split(",") if "=" in part)
    return out


def _container(
    words: Sequence[FieldWord], name: str, canonical: str, end: int, options: list[tuple[str, FieldWord | None]]
) -> Peeled | None:
    if canonical == "kubectl exec":
        dashes = next((n for n, word in enumerate(words) if word.value == "--"), None)
        end = dashes + 1 if dashes is not None else end
    if end >= len(words):
        return None
    effects = [Effect("cut"), *_given(options, ("-e", "--env"))]
    directory = next((word for flag, word in options if flag in ("-w", "--workdir")), None)
    return Peeled(name, end, tuple(effects), place="inside a container", directory=directory)


def _sudo(
    words: Sequence[FieldWord],
    end: int,
    effects: list[Effect],
    options: list[tuple[str, FieldWord | None]],
    name: str,
) -> Peeled | None:
    if end >= len(words):
        return None
    kept: list[Effect] = []
    everything = False
    for flag, word in options:
        if flag == "--preserve-env" and word is not None:
            kept += [Effect("pass", item) for item in (word.value or "").split(",")]
        elif flag in ("-E", "--preserve-env") or (
            flag.startswith("-") and not flag.startswith("--") and "E" in flag[1:]
        ):
            everything = True
    before = [] if everything else [Effect("drop"), *kept]
    return Peeled(name, end, (*before, *effects))


def _ssh(words: Sequence[FieldWord], table: Options) -> Peeled | None:
    end, _, _ = _read(words, 1, table)
    if end >= len(words):
        return None
    return Peeled("ssh", end, (Effect("cut"),), text=end, arguments=None, place="on another host")


def _su(words: Sequence[FieldWord], table: Options) -> Peeled | None:
    for at, word in enumerate(words):
        value = word.value or ""
        if value in ("-c", "--command", "-lc") and at + 1 < len(words):
            login = any(w.value in ("-", "-l", "--login", "-lc") for w in words[1:])
            effects = (Effect("drop"),) if login else ()
            return Peeled("su -c", at + 1, effects, text=at + 1, arguments=at + 2)
    del table
    return None


def _srun_export(options: list[tuple[str, FieldWord | None]]) -> list[Effect]:
    """srun(1): ``--export=ALL[,NAME=value…]``, ``NONE``, or a list of names that alone are passed."""
    out: list[Effect] = []
    for flag, word in options:
        text = word.value if flag == "--export" and word is not None else None
        if text is None:
            continue
        items = text.split(",")
        if "ALL" not in items:
            out.append(Effect("clear") if items == ["NONE"] else Effect("drop"))
        for item in items:
            if item in ("ALL", "NONE", "NIL"):
                continue
            out.append(Effect("text", item) if "=" in item else Effect("pass", item))
    return out
