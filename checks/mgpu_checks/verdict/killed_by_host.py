"""A rank was killed with signal 9: mostly the host ran out of memory."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

RULE = Rule(
    code="MGD911",
    slug="killed-by-host",
    title="A rank was killed",
    severity=Severity.ERROR,
    summary="a rank was killed with signal 9, mostly because the host ran out of memory",
    why=(
        "Nobody but the kernel, the scheduler or a person sends signal 9, and the process cannot say a word before it "
        "ends. Mostly every rank loaded the whole checkpoint into the host's memory, or optimizer states were "
        "offloaded to it. `dmesg` and the scheduler's report (`sacct -o MaxRSS`, exit code 137) tell for sure."
    ),
    bad=(
        Example(
            "torchrun's word",
            log=(
                "E0101 01:02:03.000000 77 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: -9) "
                "local_rank: 1 (pid: 18971) of binary: /opt/env/bin/python\n"
            ),
        ),
        Example(
            "deepspeed's word",
            log="[ERROR] [launch.py:434:sigkill_handler] ['python3', '-u', 't.py'] exits with return code = -9\n",
        ),
        Example(
            "the scheduler's word", log="slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the\n"
        ),
    ),
    good=(
        Example(
            "the launcher ends the others because one failed",
            log=(
                "[rank1]: ValueError: no such column\n"
                "W0101 01:02:03.000000 77 torch/distributed/elastic/multiprocessing/api.py:900] Sending process 18866 "
                "closing signal SIGTERM\n"
                "  exitcode  : -15 (pid: 18866)\n"
            ),
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/elastic/multiprocessing/api.py; errors/__init__.py",
            "'failed (exitcode: -9) local_rank: 1', 'Signal 9 (SIGKILL) received by PID …'",
            ran=True,
        ),
        Reference(
            "deepspeed 0.16.9 and 0.19.8, launcher/launch.py sigkill_handler()",
            "'exits with return code = -9'",
        ),
    ),
    fix=(
        "let one rank at a time load, or load with low memory (safetensors, meta device); give the job more memory; "
        "reduce data loader workers and offload"
    ),
    signatures=(
        Signature(
            r"failed \(exitcode: -9\)",
            "torch 2.13.0, distributed/elastic/multiprocessing/api.py (ran)",
            "failed (exitcode: -9) local_rank: 1 (pid: 18971) of binary: /opt/env/bin/python",
        ),
        # Those whom the launcher ends get this signal too when they do not heed the first one.
        Signature(
            r"exitcode *: -9 |Signal 9 \(SIGKILL\) received",
            "torch 2.13.0, distributed/elastic/multiprocessing/errors/__init__.py (ran)",
            "  traceback : Signal 9 (SIGKILL) received by PID 18971",
            weak=True,
        ),
        Signature(
            r"exits with return code = -9\b",
            "deepspeed 0.16.9 and 0.19.8, launcher/launch.py",
            "[ERROR] [launch.py:434:sigkill_handler] ['python', '-u', 't.py'] exits with return code = -9",
        ),
        Signature(
            r"Detected \d+ oom[_-]kill event|Out of memory: Killed process|Memory cgroup out of memory|"
            r"oom-kill:constraint",
            "Linux 5.15 mm/oom_kill.c; Slurm plugins/task/cgroup/task_cgroup_memory.c",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed.",
        ),
        Signature(
            r"line \d+: +\d+ Killed\b",
            "bash 5.2 (ran)",
            "run.sh: line 3: 18971 Killed                  python train.py",
        ),
        Signature(
            r"died with <Signals\.SIGKILL: 9>",
            "Python 3.11, subprocess.CalledProcessError, as accelerate's simple_launcher raises it (ran)",
            "subprocess.CalledProcessError: Command '['/opt/env/bin/python', 'train.py']' died with "
            "<Signals.SIGKILL: 9>.",
        ),
        Signature(
            r"Worker \w+ pid \d+ died, exit code: -9\b",
            "vllm 0.5.0 and later (public reports)",
            "ERROR 03-31 16:05:37 multiproc_worker_utils.py:120] Worker VllmWorkerProcess pid 3283517 died, exit "
            "code: -9",
        ),
        Signature(
            r"DataLoader worker \(pid\(?s?\)? ?\S+\) is killed by signal: Killed",
            "torch 2.13.0, csrc/DataLoader.cpp",
            "RuntimeError: DataLoader worker (pid 4412) is killed by signal: Killed. ",
        ),
        Signature(
            r"command terminated with exit code 137|\bOOMKilled\b",
            "kubectl of Kubernetes 1.20 and later (public reports)",
            "command terminated with exit code 137",
        ),
        Signature(
            r"Task was killed due to the node running low on memory|workers? \(tasks / actors\) killed due to "
            r"memory pressure",
            "ray 2.3 and later, the memory monitor (public reports)",
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        ),
        Signature(
            r"The process is killed by SIGKILL by OOM killer due to high memory usage",
            "ray 2.3 and later, a worker that has vanished (public reports)",
            "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection "
            "error code 2. End of file. There are some potential root causes. (1) The process is killed by "
            "SIGKILL by OOM killer due to high memory usage.",
            weak=True,
        ),
        Signature(
            r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|\[Errno 12\] Cannot allocate memory",
            "torch 2.13.0, c10/core/impl/alloc_cpu.cpp; Python 3.11, errno ENOMEM",
            "OSError: [Errno 12] Cannot allocate memory",
        ),
    ),
    seen=("log",),
)

find = only_signatures
