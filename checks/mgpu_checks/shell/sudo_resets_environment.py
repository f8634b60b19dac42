"""sudo, su or ssh start the launch without the variables that were set for it."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.shell import is_knob
from mgpu_doctor.authoring import (
    Case,
    Command,
    Evidence,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Variable,
    Wrapper,
    insert,
    report,
)

RULE = Rule(
    code="MGD814",
    slug="sudo-resets-environment",
    title="sudo or ssh drops the variables",
    severity=Severity.WARNING,
    summary="sudo, su or ssh start the launch without the variables that were set for it.",
    why=(
        "sudo starts its command in a fresh environment (env_reset) with a PATH of its own, `su -` "
        "and ssh start a new login: "
        "what was exported, or written in front of sudo, does not reach the launch, and python may be another one."
    ),
    bad=(
        Example("in front of sudo", "CUDA_VISIBLE_DEVICES=0,1 sudo torchrun --nproc_per_node 2 train.py"),
        Example("exported", "export NCCL_SOCKET_IFNAME=eth0 HF_HUB_OFFLINE=1\nsudo python train.py"),
        Example("PATH", "sudo FORCE_TORCHRUN=1 /opt/env/bin/llamafactory-cli train a.yaml"),
        Example("ssh", "export CUDA_VISIBLE_DEVICES=0,1\nssh node1 'cd /work && torchrun --nproc_per_node 2 train.py'"),
    ),
    good=(
        Example("PATH is passed", 'sudo env "PATH=$PATH" FORCE_TORCHRUN=1 llamafactory-cli train a.yaml'),
        Example("behind sudo", "sudo CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train.py"),
        Example("preserved", "export CUDA_VISIBLE_DEVICES=0,1\nsudo -E python train.py"),
        Example(
            "preserved by name", "CUDA_VISIBLE_DEVICES=0,1 sudo --preserve-env=CUDA_VISIBLE_DEVICES python train.py"
        ),
        Example(
            "set on the other host",
            "export CUDA_VISIBLE_DEVICES=0,1\nssh node1 'CUDA_VISIBLE_DEVICES=0,1 python train.py'",
        ),
        Example("nothing to lose", "sudo torchrun train.py"),
    ),
    sources=(
        Reference(
            "sudo 1.9.13p3, Debian's sudoers", "`FOO=1 sudo cmd` drops FOO and sets PATH to secure_path", ran=True
        ),
        Reference("sudo 1.9.13p3", "`--preserve-env=FOO` and `sudo FOO=1 cmd` hand the variable on", ran=True),
        Reference("OpenSSH 9.2, ssh_config(5) SendEnv", "nothing but TERM is sent unless it is configured"),
    ),
    fix="sudo --preserve-env=NAME,…, or set the variables behind sudo or ssh",
)

_RESETTING = frozenset({"sudo", "doas", "su -c", "ssh"})


def find(case: Case) -> Iterator[Finding]:
    """Launches behind a wrapper that drops variables."""
    for launch in case.launches:
        command = launch.command
        wrapper = next((w for w in command.wrappers if w.name in _RESETTING), None)
        if wrapper is None:
            continue
        lost = [v for v in command.shell_only if v.scope in {"export", "prefix", "env"} and _matters(command, v)]
        if lost:
            yield _finding(command, wrapper, lost)
        elif wrapper.name == "sudo" and any(layer.implied for layer in launch.layers) and not _path_is_given(command):
            yield report(
                RULE,
                f"{command.words[0].shown} starts torchrun by its name, and sudo replaces PATH (secure_path): "
                "torchrun of another environment is found, or none.",
                command.locate(wrapper.words[0].span),
                fix=Fix('sudo env "PATH=$PATH" …, or run it without sudo'),
            )


def _path_is_given(command: Command) -> bool:
    return any(variable.name == "PATH" and variable.scope == "env" for variable in command.environment)


def _matters(command: Command, variable: Variable) -> bool:
    return is_knob(variable.name) and command.variable(variable.name) is None and variable.value is not None


def _finding(command: Command, wrapper: Wrapper, lost: list[Variable]) -> Finding:
    names = list(dict.fromkeys(variable.name for variable in lost))
    shown = ", ".join(names)
    program = wrapper.words[0].shown
    values = " ".join(f"{v.name}={v.value.shown}" for v in lost if v.value is not None)
    fix = Fix(f"set them behind {program}: {values}")
    if wrapper.name == "sudo" and wrapper.words[0].origin is None:
        edit = insert(command.source, wrapper.words[0].span.end, f" --preserve-env={','.join(names)}")
        fix = Fix(f"sudo --preserve-env={','.join(names)}", (edit,))
    return report(
        RULE,
        f"{program} drops {shown}: {command.words[0].shown} runs without {'it' if len(names) == 1 else 'them'}.",
        command.locate(wrapper.words[0].span),
        related=[Evidence(f"{v.name} is set here", v.location) for v in lost if v.location is not None],
        fix=fix,
    )
