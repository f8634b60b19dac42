"""Thousands of command lines, read by us and by the launchers' own parsers: no word may be read otherwise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.launchers.arguments import OptionTable, Parsed, convert, parse_arguments
from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.source import Span
from oracle_environments import LAUNCHER_PARSERS, python_of, run_parser

LINES = 2000
LAUNCHERS = {
    "accelerate": "accelerate launch",
    "torchrun": "torchrun",
    "torch.distributed.launch": "torch.distributed.launch",
    "deepspeed": "deepspeed",
}
RELEASES = {
    "old": {"accelerate": "1.7.0", "deepspeed": "0.16.9", "torch": "2.13.0"},
    "new": {"accelerate": "1.15.0", "deepspeed": "0.19.8", "torch": "2.13.0"},
}
UNREAD_TYPES = frozenset({"fp8_override_linear_precision"})
"""Its type is a lambda without a name: whether it takes a value is not known to us, and nothing is said about it."""

INTERNAL = frozenset({"tpu_use_cluster"})
"""--no_tpu_cluster is "for internal use only"; the tables lack its spelling with dashes."""

REALISTIC = {
    "torchrun": (
        "--nproc_per_node 8 train.py --lr 1e-4",
        "--standalone --nnodes=1 --nproc-per-node=4 -m pkg.train --config a.yaml",
        "--nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500 --nproc_per_node 8 t.py -- --x",
        "--nproc-per-nod 2 t.py",
        "--nnode=1 t.py",
        "--no-python python t.py",
        "--nproc_per_node auto --rdzv-endpoint=host:29400 --rdzv-backend c10d --max-restarts=-1 t.py",
    ),
    "accelerate": (
        "--num_processes 4 --mixed_precision bf16 train.py --mixed_precision fp16",
        "--config_file ds.yaml --num-processes=2 -m llamafactory.launcher x.yaml",
        "--num_process 4 train.py",
        "--multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 0 t.py a b",
        "-m --no_python t.py",
        "-qm pkg.mod",
        "--gpu_ids 0,1 -- t.py -- --x",
    ),
    "deepspeed": (
        "--num_gpus 4 -m llamafactory.launcher --stage sft",
        "--num_gpus=4 train.py --deepspeed ds.json",
        "--include localhost:0,1 --master_port 1234 train.py",
        "-i localhost:0 -H hostfile t.py",
        "-ilocalhost:0 t.py",
        "--num_accelerators 2 t.py",
        "--num_g 2 t.py",
        "--num 2 t.py",
        "--launcher_args '-x y' t.py",
        "--autotuning tune t.py",
        "--autotuning yes t.py",
    ),
}
REALISTIC["torch.distributed.launch"] = (*REALISTIC["torchrun"], "--use_env t.py", "--use-env --nproc_per_node=2 t.py")


class Writer:
    """Writes command lines for one parser, good and bad ones, the same for the same seed."""

    def __init__(self, specs: Sequence[OptionSpec], seed: int) -> None:
        self.specs = [spec for spec in specs if spec.flags and spec.dest not in UNREAD_TYPES | INTERNAL]
        self.random = random.Random(seed)

    def line(self) -> list[str]:
        words: list[str] = []
        for _ in range(self.random.randrange(5)):
            words.extend(self.option())
        if self.random.random() < 0.08:
            words.append("--")
        if self.random.random() < 0.95:
            words.append(self.random.choice(["train.py", "./a b.py", "pkg.mod", "-", "", "x", "-3"]))
            for _ in range(self.random.randrange(4)):
                words.extend(self.rest())
        return words

    def option(self) -> list[str]:
        spec = self.random.choice(self.specs)
        flag = self.random.choice(spec.flags)
        if spec.action in ("help", "version") and self.random.random() < 0.8:
            return []
        change = self.random.random()
        if change < 0.12 and len(flag) > 4:
            flag = flag[: self.random.randrange(3, len(flag))]
        elif change < 0.16:
            flag = flag[:2] + flag[2:].replace("_", "-") if "_" in flag else flag[:2] + flag[2:].replace("-", "_")
        elif change < 0.20:
            flag += "x"
        elif change < 0.22:
            return [self.random.choice(["--nonsense", "-z", "-9", "-mq", "-tq", "-q3", "-1.5", "--a b", "--=x", "-m="])]
        switch = spec.nargs == 0 or spec.action.startswith("store_")
        if switch:
            return [f"{flag}=1"] if self.random.random() < 0.04 else [flag]
        if self.random.random() < 0.04:
            return [flag]
        value = self.value(spec)
        kind = self.random.random()
        if kind < 0.35:
            return [f"{flag}={value}"]
        if kind < 0.4 and len(flag) == 2:
            return [flag + value]
        return [flag, value]

    def value(self, spec: OptionSpec) -> str:
        if self.random.random() < 0.06:
            return self.random.choice(["", "-1", "--", "-", "--x", "a b", "-x", "-a b"])
        if spec.choices is not None:
            return str(self.random.choice([*spec.choices, "wrong"]))
        if spec.type == "int":
            return self.random.choice(["0", "1", "8", "29500", "-1", " 4 ", "1_000", "x", "2.0", "٣"])
        if spec.type == "float":
            return self.random.choice(["0", "1.5", "-2", "1e-4", "nan?", "x", "-.5"])
        if spec.type == "str_to_bool":
            return self.random.choice(["true", "FALSE", "1", "no", "maybe"])
        return self.random.choice(["a", "gpu", "host:29500", "1:2", "localhost:0,1@b", "k=v,k2=v2", "4"])

    def rest(self) -> list[str]:
        if self.random.random() < 0.5:
            return self.option()
        return [self.random.choice(["--lr", "1e-4", "--", "-h", "--log", "--m", "a=b", "--max", "--num", "-x"])]


def words_of(argv: Sequence[str]) -> tuple[Word, ...]:
    """Words without unknown parts, one blank between them."""
    out, at = [], 0
    for text in argv:
        out.append(Word(Span(at, at + len(text)), (Piece(text, text),)))
        at += len(text) + 1
    return tuple(out)


def ours(parsed: Parsed, specs: Sequence[OptionSpec]) -> dict[str, object]:
    """The namespace that argparse would make of what we read."""
    found: dict[str, object] = {}
    for spec in specs:
        # The first declaration of a dest gives the default; a text is converted like a given value.
        default = convert(spec.default, spec.type) if isinstance(spec.default, str) else spec.default
        if spec.flags:
            found.setdefault(spec.dest, default)
    for option in parsed.options:
        value = option.converted
        if option.spec.action == "append":
            before = found[option.dest]
            found[option.dest] = [*(before if isinstance(before, list) else []), value]
        else:
            found[option.dest] = list(value) if isinstance(value, tuple) else value
    return found


def disagreement(
    argv: Sequence[str], parsed: Parsed, specs: Sequence[OptionSpec], answer: dict[str, Any]
) -> str | None:
    """What the launcher's own parser says otherwise; None when both agree."""
    accepted = not parsed.problems and parsed.target is not None and parsed.stops is None
    if "values" not in answer:
        if answer["status"] == 0:
            return None if parsed.stops is not None or parsed.problems else f"{argv}: prints help, not seen"
        return f"{argv}: refused: {answer['error']}" if accepted else None
    if not accepted:
        return f"{argv}: accepted, but we say {[problem.message for problem in parsed.problems]}"
    theirs = answer["values"]
    script = theirs.get("training_script", theirs.get("user_script"))
    rest = theirs.get("training_script_args", theirs.get("user_args"))
    assert parsed.target is not None
    if (parsed.target.value, [word.value for word in parsed.rest]) != (script, rest):
        return f"{argv}: runs {script!r} {rest!r}, we say {parsed.target.value!r} {[w.value for w in parsed.rest]!r}"
    for dest, value in ours(parsed, specs).items():
        if dest in UNREAD_TYPES or dest not in theirs or not _known(value):
            continue
        if value != theirs[dest] and str(value) != str(theirs[dest]):
            return f"{argv}: {dest} is {theirs[dest]!r}, we say {value!r}"
    return None


def _known(value: object) -> bool:
    return not any(isinstance(part, Unknown) for part in (value if isinstance(value, list) else [value]))


@pytest.mark.oracle
@pytest.mark.parametrize("environment", ["old", "new"])
def test_every_line_is_read_as_the_launcher_reads_it(environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip(f"no oracle environment {environment!r}: run python tools/oracles.py")
    knowledge = PackageKnowledge(Facts(packages=RELEASES[environment]))
    asked: list[tuple[str, list[str]]] = []
    for seed, (launcher, name) in enumerate(LAUNCHERS.items()):
        specs = knowledge.options(name)
        assert not isinstance(specs, Unknown)
        writer = Writer(specs, seed)
        asked.extend((launcher, line.split(" ")) for line in REALISTIC[launcher])
        asked.extend((launcher, writer.line()) for _ in range(LINES))
    answers = run_parser(environment, LAUNCHER_PARSERS, asked)
    wrong = []
    accepted = 0
    for (launcher, argv), answer in zip(asked, answers, strict=True):
        specs = knowledge.options(LAUNCHERS[launcher])
        assert not isinstance(specs, Unknown)
        table = OptionTable(
            (spec for spec in specs if spec.flags),
            abbreviations=knowledge.allows_abbreviations(LAUNCHERS[launcher]),
        )
        parsed = parse_arguments(words_of(argv), table, python="3.11")
        accepted += "values" in answer
        found = disagreement(argv, parsed, specs, answer)
        if found is not None:
            wrong.append(f"{launcher}: {found}")
    assert accepted > len(asked) // 4, f"only {accepted} lines are accepted: the corpus is no test of values"
    assert not wrong, f"{len(wrong)} of {len(asked)}:\n" + "\n".join(wrong[:40])
