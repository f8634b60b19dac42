"""The nodes of a job differ in paths, packages or GPUs."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

RULE = Rule(
    code="MGD312",
    slug="hosts-differ",
    title="The nodes are not alike",
    severity=Severity.ERROR,
    summary="a node lacks the directory, the interpreter or the packages that the launching node uses",
    why=(
        "Launchers that start other nodes by ssh change to the same directory there and run the same interpreter by "
        "its full path: code and environment must lie at the same place on every node, best on a shared file system. "
        "torch and NCCL must be of the same release everywhere."
    ),
    bad=(
        Example(
            "deepspeed through pdsh",
            log=(
                "10.0.3.18: bash: line 1: cd: /data/run/src: No such file or directory\n"
                "10.0.3.18: bash: line 1: /opt/env/bin/python: No such file or directory\n"
            ),
        ),
    ),
    good=(
        Example("a script on this node", log="run.sh: line 3: cd: /data/run/src: No such file or directory\n"),
        Example("a missing data file", log="node2: FileNotFoundError: [Errno 2] No such file or directory: 'a.json'\n"),
    ),
    sources=(
        Reference(
            "deepspeed 0.16.9 and 0.19.8, launcher/multinode_runner.py PDSHRunner.get_cmd()",
            "`cd` to the launching directory and sys.executable of the launching node, on every node",
        ),
        Reference("pdsh 2.34", "each line of a node begins with its name and a colon", ran=True),
    ),
    fix="put code and environment at the same path on every node, or on a shared file system",
    signatures=(
        Signature(
            r"^\S+: bash: (?:line \d+: )?(?:cd: )?/\S+: No such file or directory",
            "bash 5.2 through pdsh 2.34, as deepspeed starts the nodes",
            "10.0.3.18: bash: line 1: cd: /data/run/src: No such file or directory",
        ),
    ),
    seen=("log",),
)

find = only_signatures
