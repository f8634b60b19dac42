"""The verbs from end to end, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BROKEN = "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed --num_gpus 4 train.py"
GOOD = "CUDA_VISIBLE_DEVICES=4,5 torchrun --nproc-per-node 2 train.py"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run mgpu-doctor in a folder that holds one program."""
    (tmp_path / "train.py").write_text("import torch.distributed\n")

    def call(*arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "mgpu_doctor", *arguments],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"} | variables,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert b"fault of mgpu-doctor" not in done.stderr, done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


def test_explain_says_what_would_run_and_corrects_it(run: Run) -> None:
    done = run("explain", "--facts", "none", "--format", "rich", BROKEN)
    assert done.returncode == 1
    for text in ("What would run", "deepspeed", "starts 4 processes", "29500", "MGD201", "^^^^^", "Corrected command"):
        assert text in done.stdout
    assert "\x1b" not in done.stdout
    corrected = done.stdout.split("Corrected command\n")[1].splitlines()[0]
    again = run("explain", "--facts", "none", "--format", "json", corrected)
    assert "MGD201" not in [finding["code"] for finding in json.loads(again.stdout)["findings"]]


def test_fixes_are_made_one_after_the_other(run: Run) -> None:
    # Read with the unknown -m, the options of the module look like the launcher's own.
    command = (
        "CUDA_VISIBLE_DEVICES=2,3 deepspeed --num_gpus 2 -m llamafactory.launcher \\\n"
        "  --stage sft \\\n  --model_name_or_path a/b --do_train --dataset d --output_dir o --template qwen\n"
    )
    done = run("explain", "--facts", "none", "--format", "json", "-", stdin=command.encode())
    corrected = json.loads(done.stdout)["corrected"]["text"]
    assert corrected.startswith(
        "CUDA_VISIBLE_DEVICES=2,3 deepspeed --module llamafactory.launcher \\\n  --stage sft \\\n"
    )
    assert "\n  --model_name_or_path a/b --do_train" in corrected


def test_a_good_command_exits_with_0(run: Run) -> None:
    done = run("explain", "--facts", "none", "--format", "json", GOOD)
    document = json.loads(done.stdout)
    assert done.returncode == 0, document["findings"]
    (command,) = document["commands"]
    assert (command["launcher"], command["nproc"], command["target"]) == (["torchrun"], 2, "train.py")
    assert command["env"] == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert "corrected" not in document


def test_every_way_to_give_a_command_means_the_same(run: Run) -> None:
    ways = [
        run("explain", "--facts", "none", "--format", "json", BROKEN),
        run("explain", "--facts", "none", "--format", "json", "-", stdin=BROKEN.encode()),
        run("explain", "--facts", "none", "--format", "json", "--", *BROKEN.split()),
    ]
    found = [json.loads(done.stdout) for done in ways]
    first = [(f["code"], f["line"], f["column"]) for f in found[0]["findings"]]
    assert first
    for document in found[1:]:
        assert [(f["code"], f["line"], f["column"]) for f in document["findings"]] == first


def test_lint_walks_folders_and_passes_over_what_is_not_ours(run: Run, tmp_path: Path) -> None:
    for name in ("a.sh", "sub/b.md", "sub/c.sbatch", ".git/d.sh", "node_modules/e.sh", "env/f.sh", "g.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"```bash\n{BROKEN}\n```\n" if name.endswith(".md") else f"#!/bin/bash\n{BROKEN}\n")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    done = run("lint", "--format", "json", "--show-commands")
    document = json.loads(done.stdout)
    assert [command["path"] for command in document["commands"]] == ["a.sh", "sub/b.md", "sub/c.sbatch"]
    assert {finding["path"] for finding in document["findings"]} == {"a.sh", "sub/b.md", "sub/c.sbatch"}
    assert done.returncode == 1
    named = run("lint", "g.txt", "node_modules/e.sh", "--format", "json")
    assert json.loads(named.stdout)["unread"] == ["g.txt"]
    assert {finding["path"] for finding in json.loads(named.stdout)["findings"]} == {"node_modules/e.sh"}


def test_plain_lint_lines_can_be_jumped_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text(f"# 多卡\n{BROKEN}\n")
    lines = run("lint", "a.sh").stdout.splitlines()
    assert lines[0].startswith("a.sh:2:1: error MGD201 visible-devices-ignored: ")
    assert lines[1].strip() == BROKEN
    assert lines[2].strip().strip("^") == ""


def test_standard_input_takes_its_kind_from_the_name(run: Run) -> None:
    text = f"words\n\n```bash\n{BROKEN}\n```\n".encode()
    done = run("lint", "--stdin-filename", "how-to.md", "--format", "json", "-", stdin=text)
    finding = json.loads(done.stdout)["findings"][0]
    assert (finding["path"], finding["line"]) == ("how-to.md", 4)


def test_fail_on_select_and_ignore(run: Run) -> None:
    assert run("check", "--facts", "none", "--cmd", BROKEN).returncode == 1
    assert run("check", "--facts", "none", "--fail-on", "never", "--cmd", BROKEN).returncode == 0
    assert run("check", "--facts", "none", "--ignore", "MGD201", "--cmd", BROKEN).returncode == 0
    assert run("check", "--facts", "none", "--ignore", "visible-devices-ignored", "--cmd", BROKEN).returncode == 0
    assert run("check", "--facts", "none", "--select", "MGD3", "--cmd", BROKEN).returncode == 0
    assert run("check", "--facts", "none", "--select", "MGD2,MGD3", "--cmd", BROKEN).returncode == 1


def test_a_comment_accepts_a_finding_with_its_reason(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text(f"# mgpu-doctor: ignore[MGD201] the test machine has four\n{BROKEN}\n")
    done = run("lint", "--format", "json", "a.sh")
    document = json.loads(done.stdout)
    assert [entry["reason"] for entry in document["suppressed"] if entry["code"] == "MGD201"] == [
        "the test machine has four"
    ]
    assert "MGD201" not in [finding["code"] for finding in document["findings"]]


def test_facts_from_a_file_name_the_physical_gpus(run: Run, tmp_path: Path) -> None:
    gpus = [{"index": n, "name": "NVIDIA A100", "uuid": f"GPU-0000000{n}-1", "memory_gib": 80} for n in range(8)]
    (tmp_path / "node.json").write_text(json.dumps({"gpus": gpus, "packages": {"torch": "2.6.0"}, "env": {}}))
    done = run("explain", "--facts", "node.json", "--format", "json", GOOD)
    (command,) = json.loads(done.stdout)["commands"]
    assert [rank["physical_index"] for rank in command["ranks"]] == [4, 5]
    text = run("explain", "--facts", "node.json", "--format", "rich", GOOD).stdout
    row = next(line.split() for line in text.splitlines() if "cuda:1" in line)
    assert row[0] == "5"
    assert row[-2:] == ["cuda:1", "1"]
    assert "GPU-00000005" in text


def test_what_holds_no_launch_is_not_called_well(run: Run, tmp_path: Path) -> None:
    (tmp_path / "note.sh").write_text("echo hello\n")
    for given, name in ((("--", "mylauncher", "train.py"), "this text"), (("note.sh",), "note.sh")):
        for form in ("plain", "rich"):
            done = run("check", "--facts", "none", "--format", form, *given)
            assert f"no launch command is recognised in {name}" in done.stdout.replace("No launch", "no launch")
    families = [line.partition(":")[0] for line in run("check").stdout.splitlines()]
    assert "host" in families
    assert not {"launch", "rendezvous", "shell"} & {*families}
    with_one = run("check", "--facts", "none", "--", "torchrun", "--nproc-per-node", "2", "train.py").stdout
    assert "no launch command" not in with_one
    assert "rendezvous: " in with_one


def test_a_command_of_nothing_is_refused(run: Run) -> None:
    for given in (("check", "--", ""), ("check", "--cmd", " "), ("explain", ""), ("probe", "--", "", "")):
        done = run(*given)
        assert done.returncode == 2
        assert "the command is empty" in done.stderr


def test_a_slip_in_a_rules_name_is_no_command(run: Run) -> None:
    done = run("explain", "visible-devices-ignord")
    assert done.returncode == 2
    assert "did you mean visible-devices-ignored?" in done.stderr
    assert run("explain", "--facts", "none", "llamafactory-cli").returncode != 2


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("explain", ""), "empty"),
        (("explain", "   "), "empty"),
        (("check", "--cmd", ""), "empty"),
        (("check", "--facts", "missing.json"), "missing.json"),
        (("check", "--facts", "broken.json"), "broken.json"),
        (("lint", "missing.sh"), "missing.sh"),
        (("lint", "empty.sh"), "empty.sh"),
        (("lint", "binary.sh"), "binary.sh:2"),
        (("lint", "latin.sh"), "latin.sh:2:6"),
        (("lint", "utf16.sh"), "utf16.sh"),
        (("lint", "huge.sh"), "huge.sh"),
        (("check", "empty.sh"), "empty.sh"),
    ],
)
def test_bad_input_is_named_with_its_place(arguments: tuple[str, ...], place: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"gpus": [')
    (tmp_path / "empty.sh").write_text("")
    (tmp_path / "binary.sh").write_bytes(b"echo\n\0\n")
    (tmp_path / "latin.sh").write_bytes(b"echo\necho \xe9\n")
    (tmp_path / "utf16.sh").write_bytes("echo".encode("utf-16"))
    with (tmp_path / "huge.sh").open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run(*arguments)
    assert done.returncode == 2
    assert place in done.stderr
    assert "nothing found" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 2, "one line, and perhaps a hint"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_unbalanced_quotes_are_the_scripts_fault(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("torchrun --nproc-per-node 2 'train.py\n")
    done = run("lint", "--format", "json", "a.sh")
    assert "MGD811" in [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    assert done.returncode == 1


def test_a_machine_alone_can_be_checked(run: Run) -> None:
    done = run("check", "--format", "json")
    document = json.loads(done.stdout)
    assert document["crashed"] == []
    assert document["summary"]["commands"] == 0


@pytest.mark.parametrize("form", ["rich", "plain", "github"])
def test_escapes_in_a_script_never_reach_the_terminal(run: Run, tmp_path: Path, form: str) -> None:
    (tmp_path / "a.sh").write_text(
        f"CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 '\x1b]0;owned\x07[red]' # \x9b31m\n{BROKEN}\n"
    )
    done = run("lint", "--show-commands", "--format", form, "a.sh")
    assert "MGD201" in done.stdout
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout)


def test_json_needs_neither_click_nor_rich(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mgpu_doctor.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print({'click', 'rich', 'torch', 'pynvml', 'psutil'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "explain", "--facts", "none", "--format", "json", GOOD]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


def test_new_check_writes_a_check_whose_examples_hold(run: Run, tmp_path: Path) -> None:
    package = tmp_path / "my_checks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    done = run("new-check", "my-cause", "--code", "ABC101", "--into", "my_checks", "--tests", ".")
    assert done.returncode == 0
    assert sorted(path.name for path in package.iterdir() if path.suffix) == ["__init__.py", "my_cause.py"]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_cause.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    again = run("new-check", "my-cause", "--code", "ABC101", "--into", "my_checks")
    assert again.returncode == 2
    assert "exists and is left alone" in again.stderr


@pytest.mark.parametrize(
    ("command", "launcher", "arguments", "target", "nproc", "port"),
    [
        (
            'torchrun --nproc_per_node=$N --master_port "$P" -m a.b --lr 1',
            ["torchrun"],
            [["--nproc_per_node=$N", "--master_port", "$P", "-m"]],
            {"module": "a.b"},
            "$N",
            "$P",
        ),
        (
            "srun --nodes=4 --ntasks=4 accelerate launch --num_processes 32 --num_machines 4 --machine_rank 0 train.py",
            ["srun", "accelerate"],
            [["--nodes=4", "--ntasks=4"], ["--num_processes", "32", "--num_machines", "4", "--machine_rank", "0"]],
            "train.py",
            32,
            29500,
        ),
        (
            "FORCE_TORCHRUN=1 NPROC_PER_NODE=$N MASTER_PORT=29511 llamafactory-cli train",
            ["llamafactory-cli"],
            [[]],
            {"command": "train"},
            "$N",
            29511,
        ),
        ("torchrun --nproc-per-node 2 --rdzv-endpoint $HOST:29700 train.py", ["torchrun"], None, "train.py", 2, 29700),
        ("mpirun -n 16 python train.py", ["mpirun", "python"], [["-n", "16"], []], "train.py", 16, None),
        ("CUDA_VISIBLE_DEVICES=0 bash -x eval.sh a", ["bash"], [["-x"]], "eval.sh", 1, None),
        ("srun -n 2 bash eval.sh", ["srun", "bash"], [["-n", "2"], []], "eval.sh", 2, None),
    ],
)
def test_commands_in_json_are_as_written(
    command: str,
    launcher: list[str],
    arguments: list[list[str]] | None,
    target: object,
    nproc: object,
    port: object,
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "a.sh").write_text(f"# one\n{command}\n")
    done = run("lint", "--format", "json", "--show-commands", "--fail-on", "never", "a.sh")
    (found,) = json.loads(done.stdout)["commands"]
    assert found["launcher"] == launcher
    assert arguments is None or found["launcher_args"] == arguments
    assert found["target"] == target
    assert (found["nproc"], found["port"]) == (nproc, port)
    assert (found["line_start"], found["line_end"]) == (2, 2)


def test_a_command_kept_in_a_variable_stands_where_it_is_run(run: Run, tmp_path: Path) -> None:
    text = (
        "RUN='torchrun --nproc-per-node 2 \\\n  train.py'\n"
        'srun -N 2 bash -c "$RUN --lr 1"\nsrun -N 2 \\\n  bash -c "torchrun a.py"\n'
    )
    (tmp_path / "a.sh").write_text(text)
    done = run("lint", "--format", "json", "--show-commands", "--fail-on", "never", "a.sh")
    commands = json.loads(done.stdout)["commands"]
    assert [(found["line_start"], found["line_end"]) for found in commands] == [(3, 3), (4, 5)]


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        f"import os, sys; os.rmdir({str(gone)!r}); sys.argv[1:] = ['explain', 'torchrun x.py', '--facts', 'none']; "
    )
    program += "from mgpu_doctor.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=gone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the working directory does not exist" in done.stderr


def test_the_corrected_command_is_the_best_that_was_met(run: Run, tmp_path: Path) -> None:
    (tmp_path / "acc.yaml").write_text("distributed_type: 'NO'\nnum_processes: 1\n")
    (tmp_path / "train.py").write_text("")
    gpus = [{"index": 0, "name": "NVIDIA A100", "uuid": "GPU-1", "memory_gib": 80}]
    facts = {"gpus": gpus, "packages": {"torch": "2.6.0", "accelerate": "1.7.0"}, "env": {}}
    (tmp_path / "node.json").write_text(json.dumps(facts))
    command = "accelerate launch --config_file acc.yaml --num_processes 4 train.py"
    corrected = json.loads(run("check", "--facts", "node.json", "--format", "json", "--cmd", command).stdout)[
        "corrected"
    ]
    # One process for each GPU would be the next fix, and accelerate refuses --multi_gpu with one process.
    assert corrected["text"] == "accelerate launch --multi_gpu --config_file acc.yaml --num_processes 4 train.py"
    assert [finding["slug"] for finding in corrected["remaining"]] == ["more-processes-than-gpus"]


@pytest.mark.parametrize("command", ["torchrun --nproc-per-node 2 train.py", "torchrun train.py " + "--x 1 " * 2000])
def test_a_command_where_a_file_belongs_is_told_where_it_belongs(run: Run, command: str) -> None:
    done = run("check", command)
    assert done.returncode == 2
    assert "there is no file 'torchrun" in done.stderr
    assert "--cmd" in done.stderr
    assert len(done.stderr) < 200


def test_a_check_is_shown_although_the_probe_beside_it_cannot_be_made(run: Run) -> None:
    done = run("check", "--probe", "--python", sys.executable)
    assert "host: " in done.stdout
    assert "torch" in done.stderr
    assert done.returncode in (1, 3)
