"""Launch commands in YAML: workflows, pipelines, Kubernetes manifests, compose files, tasks of clouds.

What a document is, its content says: a file of settings for a trainer has none of these forms and is no source of
commands, except where a comment in it is one. References for the forms:

- GitHub: docs.github.com, "Workflow syntax for GitHub Actions" (``run``, ``shell``, ``working-directory``, ``env``
  of workflow, job and step; expressions are filled in before the shell reads the text).
- GitLab 17, CI/CD YAML syntax reference (``before_script`` and ``script`` run in one shell, ``after_script`` in
  another).
- Azure Pipelines YAML schema (``script``, ``bash``, ``Bash@3``); CircleCI 2.1 (``run``); Buildkite (``command``).
- Kubernetes 1.31 core/v1 Container: ``command`` and ``args`` are not run within a shell, ``$(NAME)`` is replaced
  by a variable of the container.
- Compose Specification, 05-services.md: ``command`` and ``entrypoint``; 12-interpolation.md: ``$$``.
- SkyPilot 0.8, docs/source/reference/yaml-spec.rst: ``setup``, ``run``, ``envs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from mgpu_doctor.model.command import Piece, Surroundings, Variable, Word, Wrapper
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.comments import commands_in_comments
from mgpu_doctor.read.passage import Passage, excerpt_of, joined, setting, spelled
from mgpu_doctor.read.yaml_text import Mapping, Node, Scalar, Sequence, read_documents

_EXPRESSION = pattern(r"\$\{\{(?:(?!\}\}|\{\{).){0,500}\}\}|\{\{(?:(?!\}\}|\{\{).){0,500}\}\}", re.DOTALL)
_ENV_EXPRESSION = pattern(r"\$\{\{\s*env\.([A-Za-z_]\w*)\s*\}\}")
_CHANGED = pattern(r"([A-Za-z_]\w*)(?:=|<<)[^\n]*\bGITHUB_ENV\b|variable=([A-Za-z_]\w*)[^\n]*\]")
"""``echo "NAME=value" >> "$GITHUB_ENV"``, ``##vso[task.setvariable variable=NAME]``."""
_IN_ARGUMENTS = pattern(r"\$\$?\([A-Za-z_][\w.-]*\)|\{\{(?:(?!\}\}|\{\{).){0,500}\}\}", re.DOTALL)
_IN_PLAIN_ARGUMENTS = pattern(
    r"\$\$?\([A-Za-z_][\w.-]*\)|\{\{(?:(?!\}\}|\{\{).){0,500}\}\}|\$\{\w+\}|\$[A-Za-z_]\w*", re.DOTALL
)
"""Where no shell reads the words, ``$NAME`` is there for ``envsubst``, which fills it in before anything is started."""
_INTERPOLATED = pattern(r"\$\$|\$\{[^}\n]{0,500}\}|\$[A-Za-z_]\w*", re.ASCII)
_PREPARES = pattern(r"\s*(?:export|cd|source|\.|set|[A-Za-z_]\w*=\S*$)(?:\s|$)")
"""A line that all jobs share and that matters to those behind it; the others are read once, for themselves."""
_SHELL_SCRIPT = pattern(r"#!\s*\S*(?:/|env\s+)(?:ba|z|da)?sh\b")
_NAME = pattern(r"[A-Za-z_]\w*\Z", re.ASCII)

_JOB_KEYS = frozenset(
    {"stage", "image", "tags", "rules", "only", "except", "extends", "needs", "artifacts", "variables"}
)
_STEP_TEXT = ("run", "script", "bash", "command", "commands")
_CONTAINER_KEYS = frozenset(
    {"containers", "initContainers", "ephemeralContainers", "container", "trainer", "script", "steps", "sidecars"}
)
_KUBEFLOW = frozenset({"PyTorchJob", "TrainJob", "TrainingRuntime", "ClusterTrainingRuntime"})
_KUBEFLOW_SETS = (
    "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT", "PET_NNODES",
    "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_MAX_RESTARTS",
)  # fmt: skip
"""Variables that the operators put into the containers: training-operator 1.9
pkg/controller.v1/pytorch/envvar.go, trainer 2.0 pkg/runtime/framework/plugins/torch/torch.go."""


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The shell texts and commands in a YAML file, in the order of the file."""
    found: list[Excerpt] = []
    blocks: list[Span] = []
    is_settings = True
    for document in read_documents(source):
        root = document.root
        read = _reader(root, source) if isinstance(root, Mapping) else None
        if isinstance(root, Mapping) and read is not None:
            changed = frozenset(one or other for one, other in _CHANGED.findall(source.text))
            found.extend(read(root, _Scope(source, changed=changed)))
        is_settings = is_settings and read is None and (root is not None or document.is_empty)
        blocks.extend(document.blocks)
    if is_settings:
        # In a workflow, a command in a comment is one that has been switched off.
        found.extend(commands_in_comments(source, blocks))
    # Steps that are shared by an alias are the same text in the same place.
    once = {(excerpt.text, excerpt.anchors, _settings(excerpt)): excerpt for excerpt in reversed(found)}
    return tuple(sorted(once.values(), key=lambda excerpt: excerpt.anchors[0][1]))


def _settings(excerpt: Excerpt) -> tuple[tuple[str, str | None], ...]:
    return tuple((one.name, one.text) for one in excerpt.around.variables) if excerpt.around is not None else ()


@dataclass(frozen=True, slots=True)
class _Scope:
    """What holds for the commands below a node."""

    source: Source
    variables: tuple[Variable, ...] = ()
    wrappers: tuple[Wrapper, ...] = ()
    place: str | None = None
    directory: str | Unknown | None = None
    shell: str | None = None
    windows: bool = False
    changed: frozenset[str] = frozenset()
    """Names that some step gives another value for those behind it."""

    def having(self, variables: Iterable[Variable]) -> _Scope:
        """With more variables; of one name the later counts."""
        kept = {variable.name: variable for variable in (*self.variables, *variables)}
        for name in self.changed & kept.keys():
            old = kept[name].location
            kept[name] = setting(self.source, name, None, old.span if old is not None else Span(0, 0))
        return replace(self, variables=tuple(kept.values()))

    def inside(self, what: str, place: str = "inside a container") -> _Scope:
        """Where a container or another host runs the commands."""
        return replace(self, wrappers=(Wrapper(what, ()),), place=place)

    def read_by(self, shell: str) -> _Scope:
        """With another shell."""
        return replace(self, shell=shell)

    def text(self, passage: Passage) -> Iterator[Excerpt]:
        """A shell text that runs in this scope."""
        around = Surroundings(self.variables, self.wrappers, self.place, self.directory)
        excerpt = excerpt_of(self.source, passage, around)
        if excerpt is not None:
            yield excerpt


def _reader(root: Mapping, source: Source) -> Callable[[Mapping, _Scope], Iterator[Excerpt]] | None:
    """How a document is read, by its content; None for one that holds no commands."""
    if _is_text(root.get("apiVersion")) and _is_text(root.get("kind")):
        return _kubernetes
    if isinstance(root.get("services"), Mapping):
        return _compose
    if _has_steps(root):
        return _pipeline
    if _is_gitlab(root, source):
        return _gitlab
    return _task if _task_keys(root) else None


def _is_text(node: Node | None) -> bool:
    return isinstance(node, Scalar) and not node.is_null


def _scalar(node: Node | None) -> Scalar | None:
    return node if isinstance(node, Scalar) and not node.is_null else None


def _key(node: Mapping, name: str) -> Span:
    """The place of a key; of the whole node when it is merged in from another."""
    return next((key.span for key, _ in node.entries if key.value == name), Span(node.span.start, node.span.start + 1))


def _value(node: Node | None) -> str | None:
    found = _scalar(node)
    return None if found is None else found.value


# ---------------------------------------------------------------- variables


def _variables(scope: _Scope, node: Node | None, template: re.Pattern[str] | None = None) -> Iterator[Variable]:
    """A map of names and values, or a list of ``NAME=value`` or ``{name: …, value: …}``."""
    template = template or _EXPRESSION
    source = scope.source
    if isinstance(node, Mapping):
        for key, value in _entries(node):
            if _NAME.match(key.value):
                given = value.get("value") if isinstance(value, Mapping) else value
                yield _variable(source, key.value, key.span, given, template)
    elif isinstance(node, Sequence):
        for item in node.items:
            if isinstance(item, Mapping):
                name = item.get("name")
                if isinstance(name, Scalar) and _NAME.match(name.value):
                    yield _variable(source, name.value, name.span, item.get("value"), template)
            elif isinstance(item, Scalar):
                yield from _assigned(source, item, template)


def _entries(node: Mapping) -> Iterator[tuple[Scalar, Node]]:
    """The entries of a map, those that it merges in first."""
    for key, value in node.entries:
        if key.value == "<<" and key.style is None:
            for merged in value.items if isinstance(value, Sequence) else [value]:
                yield from merged.entries if isinstance(merged, Mapping) else ()
    yield from (entry for entry in node.entries if entry[0].value != "<<")


def _variable(source: Source, name: str, key: Span, value: Node | None, template: re.Pattern[str]) -> Variable:
    if not isinstance(value, Scalar) or value.is_null:
        return setting(source, name, None, key)
    passage = value.passage.replaced(template, _dollar)
    return setting(source, name, replace(passage, whole=value.span), Span(key.start, max(key.end, value.span.end)))


def _assigned(source: Source, item: Scalar, template: re.Pattern[str]) -> Iterator[Variable]:
    """``NAME=value`` as one word."""
    name, equals, _ = item.value.partition("=")
    if not _NAME.match(name):
        return
    if not equals:
        yield setting(source, name, None, item.span)
        return
    value = item.passage.cut(len(name) + 1).replaced(template, _dollar)
    yield setting(source, name, value, item.span)


def _dollar(match: re.Match[str]) -> str | None:
    return "$" if match.group() == "$$" else None


# ---------------------------------------------------------------- workflows and pipelines


def _has_steps(root: Mapping) -> bool:
    """Whether it is a workflow, an action or a pipeline: somewhere below the jobs stands a list of steps."""
    jobs = root.get("jobs")
    if isinstance(jobs, Mapping) and any(
        isinstance(job, Mapping) and job.has("uses", "with") for _, job in jobs.entries
    ):
        return True
    top = [root.get(key) for key in ("jobs", "stages", "runs", "steps", "workflows", "phases")]
    return any(_finds_steps(node, 0) for node in top if node is not None) or _steps_of(root) is not None


def _steps_of(node: Mapping) -> Sequence | None:
    steps = node.get("steps")
    if isinstance(steps, Sequence) and any(isinstance(item, Mapping) for item in steps.items):
        return steps
    return None


def _finds_steps(node: Node, depth: int) -> bool:
    if depth > 8:
        return False
    if isinstance(node, Mapping):
        return _steps_of(node) is not None or any(_finds_steps(value, depth + 1) for _, value in node.entries[:200])
    return isinstance(node, Sequence) and any(_finds_steps(item, depth + 1) for item in node.items[:200])


_NO_STEPS = frozenset({"env", "environment", "variables", "with", "matrix", "inputs", "parameters", "on", "outputs"})


def _pipeline(node: Mapping, scope: _Scope, *, is_step: bool = False) -> Iterator[Excerpt]:
    """The steps below a node, each with the variables of all that encloses it."""
    for name in ("env", "environment", "variables"):
        scope = scope.having(_variables(scope, node.get(name)))
    scope = _defaults(node, scope)
    if is_step:
        yield from _step(node, scope)
    given = node.get("with")
    if isinstance(given, Mapping) and not is_step and _is_text(node.get("uses")):
        # A workflow that is called with the text of a script.
        yield from _shell_text(given.get("script"), scope.inside("docker image"))
    for key, value in node.entries:
        children = value.items if isinstance(value, Sequence) else [value]
        if key.value in _NO_STEPS:
            continue
        for child in children:
            if isinstance(child, Mapping):
                yield from _pipeline(child, scope, is_step=key.value == "steps")


def _defaults(node: Mapping, scope: _Scope) -> _Scope:
    """What a workflow or job says about all its steps."""
    defaults = node.get("defaults")
    run = defaults.get("run") if isinstance(defaults, Mapping) else None
    if isinstance(run, Mapping):
        scope = _placed(run, scope)
    runner = node.get("runs-on") or node.get("pool")
    if runner is not None:
        names = [runner] if isinstance(runner, Scalar) else _inner(runner)
        scope = replace(scope, windows=any("windows" in name.value.lower() for name in names))
    container = node.get("container")
    if container is not None and node.get("steps") is not None:
        scope = scope.inside("docker image")
        if isinstance(container, Mapping):
            scope = scope.having(_variables(scope, container.get("env")))
    return scope


def _inner(node: Node) -> list[Scalar]:
    values = node.items if isinstance(node, Sequence) else [value for _, value in getattr(node, "entries", ())]
    return [value for value in values if isinstance(value, Scalar)]


def _placed(node: Mapping, scope: _Scope) -> _Scope:
    """``shell`` and ``working-directory`` of a step or of the defaults."""
    shell = _value(node.get("shell"))
    if shell is not None:
        scope = scope.read_by(shell)
    directory = _value(node.get("working-directory") or node.get("working_directory") or node.get("workingDirectory"))
    if directory is not None and scope.place is None:
        known = "$" not in directory and "{{" not in directory
        where = directory.removeprefix("./").rstrip("/") if known else Unknown(f"the step runs in {directory}")
        scope = replace(scope, directory=where or None)
    return scope


def _step(node: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    scope = _placed(node, scope)
    inputs = node.get("inputs")
    task = _value(node.get("task")) or ""
    if isinstance(inputs, Mapping) and task.lower().startswith(("bash@", "shellscript@", "cmdline@")):
        scope = scope.having(_variables(scope, node.get("env")))
        yield from _shell_text(inputs.get("script") or inputs.get("inlineScript"), scope)
        return
    for key in _STEP_TEXT:
        value = node.get(key)
        if isinstance(value, Mapping):  # CircleCI: run: {command: …}
            inner = scope.having(_variables(scope, value.get("environment")))
            yield from _shell_text(value.get("command"), _placed(value, inner))
        elif value is not None:
            yield from _shell_text(value, scope if key != "bash" else scope.read_by("bash"))


def _shell_text(node: Node | None, scope: _Scope) -> Iterator[Excerpt]:
    """A text, or a list of lines, that a POSIX shell reads."""
    shell = (scope.shell or "").strip().partition(" ")[0].rsplit("/", 1)[-1] or "bash"
    if shell not in ("bash", "sh", "zsh", "dash", "ksh") or (scope.windows and scope.shell is None):
        return
    lines = [one.passage for one in _flat(node)]
    known = {variable.name: variable.text for variable in scope.variables}

    def fill_in(match: re.Match[str]) -> str | None:
        name = _ENV_EXPRESSION.fullmatch(match.group())
        return known.get(name.group(1)) if name is not None else None

    if lines:
        yield from scope.text(joined(lines, "\n").replaced(_EXPRESSION, fill_in))


def _flat(node: Node | None, depth: int = 0) -> Iterator[Scalar]:
    if isinstance(node, Scalar) and not node.is_null:
        yield node
    elif isinstance(node, Sequence) and depth < 8:
        for item in node.items:
            yield from _flat(item, depth + 1)


# ---------------------------------------------------------------- GitLab


def _is_gitlab(root: Mapping, source: Source) -> bool:
    jobs = [value for _, value in root.entries if isinstance(value, Mapping) and value.get("script") is not None]
    if not jobs:
        return False
    named = source.name.rsplit("/", 1)[-1].endswith(("gitlab-ci.yml", "gitlab-ci.yaml"))
    return named or root.has("stages") or any(_JOB_KEYS & {key.value for key, _ in job.entries} for job in jobs)


def _gitlab(root: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    scope = scope.having(_variables(scope, root.get("variables")))
    default = root.get("default")
    common = root.get("before_script") or (default.get("before_script") if isinstance(default, Mapping) else None)
    yield from _shell_text(common, scope)
    shared = [line for line in _flat(common) if _PREPARES.match(line.value)]
    for _key, job in root.entries:
        if not isinstance(job, Mapping) or job.get("script") is None:
            continue
        inner = scope.having(_variables(scope, job.get("variables")))
        own = job.get("before_script")
        lines = [*(shared if own is None else _flat(own)), *_flat(job.get("script"))]
        if lines:
            yield from inner.text(joined([line.passage for line in lines], "\n").filled_in(_EXPRESSION))
        yield from _shell_text(job.get("after_script"), inner)


# ---------------------------------------------------------------- Kubernetes


def _kubernetes(root: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    kind = _value(root.get("kind")) or ""
    items = root.get("items")
    if kind.endswith("List") and isinstance(items, Sequence):
        for item in items.items:
            if isinstance(item, Mapping) and _is_text(item.get("kind")):
                yield from _kubernetes(item, scope)
        return
    if kind == "CustomResourceDefinition":
        return
    place = _key(root, "kind")
    scope = scope.inside("kubectl pod")
    if kind in _KUBEFLOW:
        scope = scope.having(_unknown(name, place) for name in _KUBEFLOW_SETS)
    if kind == "ConfigMap":
        yield from _config_map(root, scope)
        return
    yield from _containers(root, "", scope, 0, set())


def _unknown(name: str, place: Span) -> Variable:
    return Variable(name, Word(place, (Piece(None, f"${name}", name),)), "env")


def _config_map(root: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    """Scripts that a map mounts as files."""
    data = root.get("data")
    for key, value in data.entries if isinstance(data, Mapping) else ():
        if key.value.endswith((".sh", ".bash")) and isinstance(value, Scalar):
            yield from scope.text(value.passage.filled_in(_EXPRESSION))


def _containers(node: Node, key: str, scope: _Scope, depth: int, seen: set[int]) -> Iterator[Excerpt]:
    """Everything below a node that starts a container."""
    if id(node) in seen or isinstance(node, Scalar):
        return
    seen.add(id(node))
    if isinstance(node, Sequence):
        for item in node.items:
            yield from _containers(item, key, scope, depth + 1, seen)
        return
    if key in _CONTAINER_KEYS or node.has("image"):
        yield from _container(node, scope)
    entrypoint = _scalar(node.get("entrypoint"))
    if key in ("spec", "rayJobSpec", "jobSpec") and entrypoint is not None and not node.has("templates"):
        yield from scope.text(entrypoint.passage.filled_in(_EXPRESSION))
    for name, value in node.entries:
        yield from _containers(value, name.value, scope, depth + 1, seen)


def _container(node: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    scope = scope.having(_variables(scope, node.get("env")))
    command, arguments = _words(node.get("command")), _words(node.get("args"))
    text = _scalar(node.get("source") or node.get("script"))
    if text is not None:
        shebang = text.value.startswith("#!") and not _SHELL_SCRIPT.match(text.value)
        if not shebang and (command is None or _is_shell(command)):
            yield from scope.text(text.passage.filled_in(_EXPRESSION))
        return
    if command is None and arguments is None:
        return
    known = {variable.name: variable.text for variable in scope.variables}

    def fill_in(match: re.Match[str]) -> str | None:
        written = match.group()
        if written.startswith("$$"):
            return written[1:]
        return known.get(written[2:-1]) if written.startswith("$(") else None

    first = _both(command, arguments)[:1]
    used = _IN_ARGUMENTS if _is_shell(first) else _IN_PLAIN_ARGUMENTS
    words = [word.passage.replaced(used, fill_in) for word in (*(command or ()), *(arguments or ()))]
    if words:
        yield from scope.text(
            spelled([_kept(word, one) for word, one in zip(words, _both(command, arguments), strict=True)])
        )


def _both(one: list[Scalar] | None, other: list[Scalar] | None) -> list[Scalar]:
    return [*(one or ()), *(other or ())]


def _kept(passage: Passage, scalar: Scalar) -> Passage:
    """The passage with the place of its scalar, quotation marks included."""
    return replace(passage, whole=scalar.span) if passage.whole is None else passage


def _words(node: Node | None) -> list[Scalar] | None:
    """A list of strings; None for anything else."""
    if not isinstance(node, Sequence) or not all(isinstance(item, Scalar) for item in node.items):
        return None
    return [item for item in node.items if isinstance(item, Scalar)]


def _is_shell(words: list[Scalar]) -> bool:
    return bool(words) and words[0].value.rsplit("/", 1)[-1] in ("bash", "sh", "zsh")


# ---------------------------------------------------------------- compose


def _compose(root: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    services = root.get("services")
    for _name, service in services.entries if isinstance(services, Mapping) else ():
        if not isinstance(service, Mapping):
            continue
        inner = scope.inside("docker image")
        inner = inner.having(_variables(scope, service.get("environment"), _INTERPOLATED))
        parts = [part for part in (_composed(service.get("entrypoint")), _composed(service.get("command"))) if part]
        if parts:
            yield from inner.text(joined(parts, " "))


def _composed(node: Node | None) -> Passage | None:
    """A command of a compose file: a list of words, or a string that is split into words."""
    if isinstance(node, Scalar):
        return None if node.is_null else node.passage.stripped().replaced(_INTERPOLATED, _dollar)
    words = _words(node)
    if not words:
        return None
    return spelled([_kept(word.passage.replaced(_INTERPOLATED, _dollar), word) for word in words])


# ---------------------------------------------------------------- tasks of clouds


def _task_keys(root: Mapping) -> tuple[str, ...]:
    """The keys that hold commands: SkyPilot's, dstack's (``type: task``), those of Azure ML and MosaicML."""
    keys = {key.value for key, _ in root.entries}
    if _is_text(root.get("run")) and keys & {"resources", "setup", "num_nodes", "envs", "workdir", "file_mounts"}:
        return ("setup", "run")
    if "commands" in keys and _value(root.get("type")) in ("task", "service", "dev-environment"):
        return ("commands",)
    runs_image = "image" in keys and keys & {"compute", "gpu_num", "gpu_type", "cluster"}
    if _is_text(root.get("command")) and ({"compute", "environment"} <= keys or runs_image):
        return ("command",)
    return ()


def _task(root: Mapping, scope: _Scope) -> Iterator[Excerpt]:
    scope = scope.inside("docker task", "on the cluster that the task is given")
    for name in ("envs", "secrets", "env", "environment_variables", "env_variables"):
        scope = scope.having(_variables(scope, root.get(name)))
    for key in _task_keys(root):
        yield from _shell_text(root.get(key), scope)
