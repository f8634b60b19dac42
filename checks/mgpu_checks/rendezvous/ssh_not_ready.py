"""A launcher for several nodes cannot log in to one of them without a password."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

RULE = Rule(
    code="MGD314",
    slug="ssh-not-ready",
    title="The other nodes cannot be reached by ssh",
    severity=Severity.ERROR,
    summary="a launcher that starts the other nodes by ssh could not log in to one of them",
    why=(
        "deepspeed with a hostfile, and mpirun without a scheduler, start their processes on the other nodes by ssh. "
        "Nobody is there to type a password or to accept a host key: `ssh NODE true` must work from the first node "
        "without a question, and in a container the other containers need a running sshd on the port that is named."
    ),
    bad=(
        Example(
            "no key",
            log="node2: Permission denied (publickey,password).\npdsh@node1: node2: ssh exited with exit code 255\n",
        ),
        Example("a new host key", log="Host key verification failed.\n"),
    ),
    good=(Example("a file", log="run.sh: line 3: ./train: Permission denied\n"),),
    sources=(
        Reference(
            "deepspeed 0.16.9 and 0.19.8, launcher/multinode_runner.py PDSHRunner.get_cmd()",
            "pdsh with PDSH_RCMD_TYPE=ssh starts deepspeed.launcher.launch on every node",
        ),
        Reference(
            "OpenSSH 9.2, sshconnect2.c and sshconnect.c",
            "'Permission denied (publickey…)', 'Host key verification failed.'",
        ),
        Reference("pdsh 2.34 over OpenSSH 9.2", "'ssh exited with exit code 255'", ran=True),
    ),
    fix="make `ssh NODE true` work without a password from the node that launches, and accept the host keys once",
    signatures=(
        Signature(
            r"Permission denied \((?:publickey|password|gssapi|keyboard)",
            "OpenSSH 9.2, sshconnect2.c",
            "node2: Permission denied (publickey,password).",
        ),
        Signature(r"Host key verification failed", "OpenSSH 9.2, sshconnect.c", "Host key verification failed."),
        Signature(
            r"ssh exited with exit code 255|ssh: connect to host \S+ port \d+: ",
            "pdsh 2.34 over OpenSSH 9.2 (ran)",
            "ssh: connect to host node2 port 22: Connection refused",
        ),
        Signature(
            r"KeyError: 'PDSH_SSH_ARGS_APPEND'",
            "deepspeed before 0.16.9, which reads the variable with a default, launcher/multinode_runner.py",
            "KeyError: 'PDSH_SSH_ARGS_APPEND'",
        ),
        Signature(
            r"was not reachable via ssh|launcher 'pdsh' not installed",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py main()",
            "RuntimeError: Using hostfile at hostfile but host=192.168.3.100 was not reachable via ssh. If you "
            "are running with a single node please remove hostfile or setup passwordless ssh.",
        ),
        Signature(
            r"^pdsh@\S+: \S+: (?:mcmd: )?connect(?: failed)?: ",
            "pdsh 2.34 with its rsh or mrsh module where ssh is meant (public reports)",
            "pdsh@node0: node1: connect: Connection refused",
        ),
        Signature(
            r"ORTE was unable to reliably start one or more daemons|PRTE has lost communication with a remote daemon",
            "Open MPI 4.1, mpirun over ssh (public reports)",
            "ORTE was unable to reliably start one or more daemons.",
            weak=True,
        ),
    ),
    seen=("log",),
)

find = only_signatures
