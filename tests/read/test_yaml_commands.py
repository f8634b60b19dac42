"""Commands in YAML: what is found, in which environment, and where in the file it stands."""

from __future__ import annotations

import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.diagnose import Request, _excerpts, diagnose
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.text import kind_of
from mgpu_doctor.read.yaml_text import Mapping, Scalar, documents
from mgpu_doctor.shell import parse_all


def commands(text: str, name: str = "file.yaml") -> list[Command]:
    """The commands of a file whose program is one that launches, in order."""
    source = Source(name, textwrap.dedent(text), kind_of(name) or "")
    found = [c for excerpt in _excerpts(source) for script in parse_all(excerpt) for c in script.commands]
    return [c for c in found if c.name in ("torchrun", "accelerate", "deepspeed", "python")]


def shown(text: str, name: str = "file.yaml") -> list[list[str]]:
    return [[word.shown for word in command.words] for command in commands(text, name)]


def written(command: Command) -> list[str]:
    """What stands in the file at the place of every word."""
    return [command.source.slice(word.span) for word in command.words]


WORKFLOW = """\
    name: tests
    on: push
    env: {LEVEL: top, NCCL_DEBUG: INFO}
    jobs:
      gpu:
        runs-on: [self-hosted, gpu]
        env:
          LEVEL: job
        strategy: {matrix: {gpus: [2, 4]}}
        steps:
          - uses: actions/checkout@v4
          - run: torchrun --nproc_per_node=${{ matrix.gpus }} train.py
          - name: several lines
            working-directory: examples
            env:
              LEVEL: step
              TOKEN: ${{ secrets.TOKEN }}
            run: |
              set -e
              torchrun \\
                --nproc_per_node 2 \\
                "a b.py"
          - shell: python
            run: torchrun = 1
          - run: >-
              accelerate launch
              train.py
      windows:
        runs-on: windows-latest
        steps:
          - run: torchrun train.py
          - run: torchrun bash.py
            shell: bash
"""


def test_a_workflow_has_the_steps_that_a_posix_shell_reads() -> None:
    assert shown(WORKFLOW) == [
        ["torchrun", "--nproc_per_node=${{ matrix.gpus }}", "train.py"],
        ["torchrun", "--nproc_per_node", "2", "a b.py"],
        ["accelerate", "launch", "train.py"],
        ["torchrun", "bash.py"],
    ]


def test_every_word_of_a_workflow_leads_to_its_place_in_the_file() -> None:
    first, second, third, _ = commands(WORKFLOW)
    assert written(first) == ["torchrun", "--nproc_per_node=${{ matrix.gpus }}", "train.py"]
    assert written(second) == ["torchrun", "--nproc_per_node", "2", '"a b.py"']
    assert written(third) == ["accelerate", "launch", "train.py"]
    assert second.source.position(second.words[0].span.start) == (20, 11)


def test_the_nearest_env_counts_and_an_expression_is_not_known() -> None:
    first, second, *_ = commands(WORKFLOW)
    level = first.variable("LEVEL")
    assert level is not None
    assert level.text == "job"
    level, token, debug = (second.variable(name) for name in ("LEVEL", "TOKEN", "NCCL_DEBUG"))
    assert level is not None
    assert level.text == "step"
    assert level.exported
    assert token is not None
    assert token.text is None
    assert debug is not None
    assert debug.location is not None
    assert second.source.slice(debug.location.span) == "NCCL_DEBUG: INFO"
    assert first.variable("TOKEN") is None
    assert second.directory == "examples"


def test_an_expression_is_one_unknown_word_even_in_quotes() -> None:
    (command,) = commands("jobs: {a: {steps: [{run: \"torchrun --nproc_per_node '${{ x }}' train.py\"}]}}")
    assert [word.value for word in command.words] == ["torchrun", "--nproc_per_node", None, "train.py"]
    assert command.words[2].written == "${{ x }}"


POD = """\
    apiVersion: {{ api }}
    kind: [
    ---
    apiVersion: kubeflow.org/v1
    kind: PyTorchJob
    spec:
      pytorchReplicaSpecs:
        Worker:
          template:
            spec:
              containers:
                - name: shell
                  image: image
                  env:
                    - {name: NPROC, value: "8"}
                    - name: SECRET
                      valueFrom: {secretKeyRef: {name: a, key: b}}
                  command: ["/bin/bash", "-c", "cd /app; torchrun --nproc_per_node=$(NPROC) \\"train it.py\\""]
                - name: words
                  image: image
                  command:
                    - torchrun
                    - "--note=two words"
                    - $(MISSING)
                  args: ['it''s.py']
                - name: entrypoint
                  image: image
                  args: [--backend, nccl]
"""


def test_a_manifest_has_its_containers_commands() -> None:
    shell, words = commands(POD)
    assert [word.value for word in shell.words] == ["torchrun", "--nproc_per_node=8", "train it.py"]
    assert [wrapper.name for wrapper in shell.wrappers] == ["kubectl pod", "bash -c"]
    assert [word.value for word in words.words] == ["torchrun", "--note=two words", None, "it's.py"]
    assert written(words) == ["torchrun", '"--note=two words"', "$(MISSING)", "'it''s.py'"]
    assert written(shell)[:2] == ["torchrun", "--nproc_per_node=$(NPROC)"]
    assert written(shell)[2].startswith('\\"train it.py')
    secret, rank = shell.variable("SECRET"), shell.variable("RANK")
    assert secret is not None
    assert secret.text is None
    assert rank is not None
    assert rank.text is None
    assert rank.location is None


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("TrainJob", "{trainer: {command: [torchrun, train.py]}}", ["torchrun", "train.py"]),
        ("RayJob", '{entrypoint: "python train.py"}', ["python", "train.py"]),
        ("CronJob", "{a: {spec: {containers: [{image: x, args: [python, t.py]}]}}}", ["python", "t.py"]),
        ("Workflow", '{templates: [{container: {command: [sh, -c], args: ["torchrun x.py"]}}]}', ["torchrun", "x.py"]),
        ("Workflow", '{templates: [{script: {command: [bash], source: "torchrun {{a}} x.py"}}]}', None),
        ("Workflow", '{templates: [{script: {command: [python], source: "torchrun x.py"}}]}', []),
    ],
)
def test_kinds_of_manifests(kind: str, spec: str, words: list[str] | None) -> None:
    found = shown(f"apiVersion: a/v1\nkind: {kind}\nspec: {spec}\n")
    assert found == ([words] if words else [] if words == [] else [["torchrun", "{{a}}", "x.py"]])


def test_a_word_of_a_list_is_no_assignment() -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: x, args: [A=1, torchrun]}, {image: y, args: [python]}]}"
    )
    (command,) = commands(text)
    assert [word.value for word in command.words] == ["python"]


def test_variables_that_envsubst_fills_in_are_not_known() -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: x, command: [torchrun, --nnodes=$NODES, '${X}.py']}]}"
    )
    (command,) = commands(text)
    assert [word.value for word in command.words] == ["torchrun", None, None]
    assert command.words[1].written == "--nnodes=$NODES"


def test_a_called_workflow_may_be_given_a_script() -> None:
    text = "jobs: {a: {uses: org/repo/job.yml@main, with: {timeout: 60, script: 'torchrun -m pytest'}}}"
    assert shown(text) == [["torchrun", "-m", "pytest"]]


def test_an_expression_may_name_a_variable_of_the_file() -> None:
    steps = "- script: echo M=8 >> $GITHUB_ENV\n- script: torchrun --n ${{ env.N }} ${{ env.M }} x.py\n"
    text = "env: {N: 4, M: 2}\nsteps:\n" + steps
    (command,) = commands(text)
    assert [word.value for word in command.words] == ["torchrun", "--n", "4", None, "x.py"]
    changed = command.variable("M")
    assert changed is not None
    assert changed.text is None


@pytest.mark.parametrize("shell", ["' '", "''", "'bash -l {0}'", "/bin/sh", "null"])
def test_shells_that_read_it(shell: str) -> None:
    assert shown(f"steps: [{{run: torchrun x.py, shell: {shell}}}]") == [["torchrun", "x.py"]]


@pytest.mark.parametrize("shell", ["pwsh", "cmd", "python", "'${{ matrix.shell }}'"])
def test_shells_that_are_none(shell: str) -> None:
    assert shown(f"steps: [{{run: torchrun x.py, shell: {shell}}}]") == []


def test_a_comment_in_a_workflow_is_switched_off() -> None:
    text = "# torchrun --nproc_per_node 2 x.py\njobs: {a: {steps: [{run: torchrun y.py}]}}\n"
    assert shown(text) == [["torchrun", "y.py"]]


def test_a_config_map_holds_scripts() -> None:
    text = """\
        apiVersion: v1
        kind: ConfigMap
        data:
          run.sh: |
            #!/bin/bash
            torchrun train.py
          note.txt: torchrun other.py
    """
    assert shown(text) == [["torchrun", "train.py"]]


def test_compose_fills_in_before_the_words_are_split() -> None:
    text = """\
        services:
          one:
            image: x
            environment:
              - NCCL_SOCKET_IFNAME="eth0"
              - FROM_HOST
            command: torchrun --nproc_per_node ${N:-2} --note '$$x' train.py
          two:
            image: x
            environment: {A: 1}
            entrypoint: [accelerate, launch]
            command: ["--num_processes", "2", "train.py"]
    """
    one, two = commands(text, "compose.yml")
    assert [word.value for word in one.words] == ["torchrun", "--nproc_per_node", None, "--note", "$x", "train.py"]
    interface, host = one.variable("NCCL_SOCKET_IFNAME"), one.variable("FROM_HOST")
    assert interface is not None
    assert interface.text == '"eth0"'
    assert host is not None
    assert host.text is None
    assert [word.value for word in two.words] == ["accelerate", "launch", "--num_processes", "2", "train.py"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            ".gitlab-ci.yml",
            "before_script: [export N=4]\njob:\n  script:\n    - cd x\n    - torchrun --nproc $N t.py\n",
            ["torchrun", "--nproc", "4", "t.py"],
        ),
        ("azure.yml", "steps:\n- task: Bash@3\n  inputs: {script: torchrun t.py}\n", ["torchrun", "t.py"]),
        ("config.yml", "jobs: {a: {steps: [{run: {command: torchrun t.py}}]}}\n", ["torchrun", "t.py"]),
        ("pipe.yml", "steps:\n- label: a\n  commands:\n  - torchrun t.py\n", ["torchrun", "t.py"]),
        ("action.yml", "runs: {using: composite, steps: [{run: torchrun t.py, shell: bash}]}\n", ["torchrun", "t.py"]),
        (
            "sky.yaml",
            "envs: {N: 8}\nresources: {}\nrun: torchrun --nproc $N t.py\n",
            ["torchrun", "--nproc", "8", "t.py"],
        ),
        ("d.yml", "type: task\ncommands:\n  - torchrun t.py\n", ["torchrun", "t.py"]),
    ],
)
def test_other_forms(name: str, text: str, expected: list[str]) -> None:
    assert shown(text, name) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "run: torchrun train.py\nmodel: x\n",
        "command: torchrun train.py\n",
        "script: torchrun train.py\n",
        "- torchrun train.py\n",
        "deepspeed: ds.json\nsteps: 100\npython: 3\n",
        "body:\n  - type: markdown\n    attributes: {value: torchrun train.py}\n",
        "repos: [{hooks: [{entry: python train.py}]}]\n",
        "apiVersion: x\nkind: CustomResourceDefinition\nspec: {containers: [{command: [python, a.py]}]}\n",
        "a: &a [*a]\ncommand: python\n",
        "{{- if x }}\nsteps: [{run: python a.py}]\n",
    ],
)
def test_other_documents_are_no_source_of_commands(text: str) -> None:
    assert shown(text) == []


def test_a_comment_may_be_a_command() -> None:
    text = """\
        # Start it:
        #   accelerate launch \\
        #     --num_processes 2 \\
        #     src/train.py config.yaml
        # Use torchrun train.py for one node.
        # accelerate launch is needed
        key: |
          # torchrun --nproc_per_node 2 no_comment.py
        # - torchrun --nproc_per_node 2 off.py
    """
    (command,) = commands(text)
    assert [word.value for word in command.words][2:] == ["--num_processes", "2", "src/train.py", "config.yaml"]
    assert written(command)[2] == "--num_processes"


def test_aliases_that_multiply_and_deep_nesting_end_quietly() -> None:
    bomb = "a0: &a0 [python, python]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    chain = "a0: &a0 [python]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
    for text in (
        bomb + "steps: [{run: python a.py}]\n",
        chain,
        "[" * 5000 + "python",
        "steps:\n" + "- " * 3000 + "python",
    ):
        assert shown(text) == []


def test_steps_that_are_shared_by_an_alias_are_read_where_they_stand() -> None:
    text = "jobs:\n  a: {steps: &s [{run: torchrun a.py}]}\n  b: {steps: *s}\n"
    assert {command.words[1].span for command in commands(text)} == {commands(text)[0].words[1].span}


# ---------------------------------------------------------------- scalars


def _scalars(text: str) -> list[Scalar]:
    (root,) = documents(Source("x", text, "yaml"))
    assert isinstance(root, Mapping)
    return [value for _, value in root.entries if isinstance(value, Scalar)]


_LINE = st.text(alphabet="ab \t'\"\\:#$-é😀", max_size=12)


@settings(max_examples=400, deadline=None)
@given(
    style=st.sampled_from(["|", ">", "'", '"', ""]),
    lines=st.lists(_LINE, min_size=1, max_size=6),
    width=st.integers(1, 4),
    chomping=st.sampled_from(["", "-", "+"]),
    explicit=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.sampled_from(["", "\n", "\n\n"]),
)
def test_every_character_of_a_scalar_leads_to_itself(
    style: str, lines: list[str], width: int, chomping: str, explicit: bool, end: str, last: str
) -> None:
    pad = end + " " * width
    if style in ("|", ">"):
        text = f"k: {style}{width if explicit else ''}{chomping}{pad}{pad.join(lines)}{last}"
    elif style == "'":
        text = f"k: '{pad.join(line.replace(style, style * 2) for line in lines)}'{last}"
    elif style == '"':
        text = f'k: "{pad.join(line.replace(chr(92), chr(92) * 2).replace(style, chr(92) + style) for line in lines)}"'
    else:
        text = f"k: {pad.join(lines)}{last}"
    try:
        wanted = yaml.load(text.replace("\r\n", "\n"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return
    if not isinstance(wanted, dict) or not isinstance(wanted.get("k"), str):
        return
    (scalar,) = _scalars(text)
    passage = scalar.passage
    assert passage.text == scalar.value
    assert passage.text == wanted["k"]
    for character, place in zip(passage.text, passage.places, strict=True):
        at = text[place]
        assert at == character or (character in " \n" and at in "\r\n") or at == "\\"


# ---------------------------------------------------------------- documents

DOCUMENT = """\
# How to

1. A pod:

   ```yaml
   apiVersion: v1
   kind: Pod
   spec:
     containers:
     - image: x
       env: [{name: NCCL_SOCKET_IFNAME, value: "'eth0'"}]
       command: ["torchrun", "--nproc_per_ndoe=2", "train.py"]
   ```

```yaml
run: torchrun train.py
```

```dockerfile
FROM x
CMD torchrun other.py
```
"""


def test_blocks_of_a_document_are_read_in_their_language() -> None:
    pod, image = commands(DOCUMENT, "a.md")
    assert written(pod) == ["torchrun", "--nproc_per_ndoe=2", "train.py"]
    assert pod.source.position(pod.words[1].span.start) == (12, 31)
    variable = pod.variable("NCCL_SOCKET_IFNAME")
    assert variable is not None
    assert variable.location is not None
    assert pod.source.slice(variable.location.span) == "NCCL_SOCKET_IFNAME, value: \"'eth0'\""
    assert written(image) == ["torchrun", "other.py"]


@pytest.mark.parametrize(("code", "old", "new"), [("MGD106", "ndoe", "node"), ("MGD809", "'eth0'", "eth0")])
def test_fixes_land_in_the_block(code: str, old: str, new: str) -> None:
    request = Request(mode="lint", text=DOCUMENT, text_name="a.md", text_kind="markdown", select=(code,))
    (finding,) = diagnose(request).findings
    assert finding.fix is not None
    assert apply_edits(DOCUMENT, finding.fix.edits) == DOCUMENT.replace(old, new)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "steps:\n- script: |\n    python x.py " + "{{ " * 200_000),
        ("a.yml", 'steps:\n- script: "python' + " " * 200_000 + 'x.py"\n'),
        ("a.yml", "steps:\n- script: |2\n" + "    python\n" * 50_000),
        ("a.yml", "python: " + "[" * 100_000),
        ("Makefile", "a:\n\tpython " + "$(x " * 100_000),
        ("justfile", "python" + " " * 200_000 + "\n"),
        ("Dockerfile", "RUN python " + "${a" * 200_000),
        ("Dockerfile", 'CMD ["python", "' + "\\\\" * 200_000),
    ],
    ids=range(8),
)
def test_hostile_texts_end(name: str, text: str) -> None:
    source = Source(name, text, kind_of(name) or "")
    assert all(len(excerpt.text) <= 2 * len(text) for excerpt in _excerpts(source))
