"""What a Python file's text shows, by parsing it; nothing of it is imported or run.

The facts in :attr:`Program.seen`, by kind and what their detail says:

==========================  ==========================================================================
``imports-torch``           an import of torch; the module's name
``reads-variable``          ``os.environ[X]``, ``os.environ.get(X)``, ``os.getenv(X)``; the name
``sets-variable``           ``os.environ[X] = …``; ``NAME=value``, or the name alone for a computed value
``defaults-variable``       ``os.environ.setdefault(X, …)``; as for ``sets-variable``
``init-process-group``      torch's or deepspeed's process group; the literal init_method, else empty
``explicit-rank``           ``init_process_group(rank=…)``; the expression
``set-device``              ``torch.cuda.set_device(…)``; the expression
``cuda-device``             a device pinned by number; ``cuda:1``
``cuda-device-default``     the same as the default of an option or a parameter
``cuda-call``               needs the device to exist (``.cuda()``, ``.to("cuda")``, ``torch.cuda.…``); the call
``device-map``              ``device_map=…``; the literal text, else the expression
``process-index-as-device`` the *global* rank chooses a device; the expression
``from-pretrained``         a model is loaded; its keywords as ``name=value`` joined by ``, ``
``model-name``              the literal first argument of ``from_pretrained``
``load``                    ``torch.load`` without map_location; what is loaded
``accelerator``             ``Accelerator()`` or ``PartialState()``; the name
``trainer``                 a Trainer of transformers, trl or the like; its class
``lightning-trainer``       Lightning's Trainer, which starts its own processes
``ddp`` ``fsdp``            the wrapper of that name; the call
``data-parallel``           ``torch.nn.DataParallel``
``deepspeed-initialize``    ``deepspeed.initialize``
``deepspeed-inference``     ``deepspeed.init_inference``
``local-rank-use``          LOCAL_RANK or a ``local_rank`` is used; the expression
``needs-ranks``             the program surely fails without a launcher's variables; what needs them
``spawns-ranks``            the program starts its own ranks (``mp.spawn``, ``notebook_launcher``); the call
``input-loop``              ``input()`` in a loop; ``conditional`` when only under a condition
``server``                  a server is started; the call, ``conditional`` when only under a condition
``colossalai-launch``       ``colossalai.launch…``; the call
``main-block``              ``if __name__ == "__main__":``
``run-exp``                 LLaMA-Factory's ``run_exp()``
``export-model``            LLaMA-Factory's ``export_model()``
``generate`` ``predict``    ``.generate(…)``, ``.predict(…)``
``backward`` ``optimizer``  ``.backward()``; an optimizer of torch.optim
``bf16``                    bfloat16 is asked for
``literal-port``            a port number in the text that ranks would meet on; the number
``subprocess-launch``       a launcher started as a subprocess; its name
``hf-argument-parser``      transformers' or trl's dataclass parser; the class
``other-parser``            click, typer, fire, tyro, hydra; the package
==========================  ==========================================================================

A fact stands ``under a condition`` when an ``if`` other than the main block's surrounds it.
``needs-ranks`` is only said of what runs in any case: no condition, ``try`` or loop around it, and the same for
the calls that lead to it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.program import Program, ScriptOption, Seen
from mgpu_doctor.model.record import dataclass, field, replace
from mgpu_doctor.model.source import Source, Span

MAX_SEEN = 400
"""Facts kept of one program; a generated file may hold thousands."""

_EXPRESSION_LENGTH = 200
_LAUNCHER_WORDS = ("torchrun", "accelerate", "deepspeed", "torch.distributed.run", "torch.distributed.launch")
_OTHER_PARSERS = frozenset({"click", "typer", "fire", "tyro", "hydra", "absl", "jsonargparse", "simple_parsing"})
_DATACLASS_PARSERS = frozenset({"HfArgumentParser", "TrlParser", "H4ArgumentParser", "HfParser"})
_TOKENIZER_TRAINERS = frozenset({"BpeTrainer", "WordPieceTrainer", "UnigramTrainer", "WordLevelTrainer"})
_DECLARING = frozenset({"add_argument", "option", "Option", "field"})
_NAMES = {
    "torch.distributed.init_process_group": "init-process-group",
    "deepspeed.init_distributed": "init-process-group",
    "deepspeed.comm.init_distributed": "init-process-group",
    "deepspeed.initialize": "deepspeed-initialize",
    "deepspeed.init_inference": "deepspeed-inference",
    "torch.cuda.set_device": "set-device",
    "torch.nn.DataParallel": "data-parallel",
    "torch.nn.parallel.DataParallel": "data-parallel",
    "torch.nn.parallel.DistributedDataParallel": "ddp",
    "torch.nn.parallel.distributed.DistributedDataParallel": "ddp",
    "torch.distributed.fsdp.FullyShardedDataParallel": "fsdp",
    "torch.distributed.fsdp.fully_shard": "fsdp",
    "torch.distributed._composable.fsdp.fully_shard": "fsdp",
    "torch.multiprocessing.spawn": "spawns-ranks",
    "accelerate.notebook_launcher": "spawns-ranks",
    "accelerate.debug_launcher": "spawns-ranks",
    "accelerate.Accelerator": "accelerator",
    "accelerate.PartialState": "accelerator",
    "accelerate.state.PartialState": "accelerator",
    "accelerate.state.AcceleratorState": "accelerator",
    "accelerate.accelerator.Accelerator": "accelerator",
    "uvicorn.run": "server",
    "aiohttp.web.run_app": "server",
    "http.server.HTTPServer": "server",
    "torch.bfloat16": "bf16",
}
_MASTER_PORT = "MASTER_PORT"


def read_program(source: Source) -> Program | Unknown:
    """What the text shows; Unknown with the place where Python would refuse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.text)
    except SyntaxError as error:
        place = f"{source.name}:{error.lineno or 1}:{error.offset or 1}"
        return Unknown(f"{place} is not valid Python: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Unknown(f"{source.name} cannot be parsed as Python: {error or type(error).__name__}")
    reader = _Reader(source)
    try:
        reader.read(tree)
    except RecursionError:
        return Unknown(f"{source.name} is nested too deeply to be read")
    return reader.program()


@dataclass(slots=True)
class _Place:
    """Where the walk stands: loops, conditions, defaults around it, and the top-level statement's number."""

    order: int
    loop: bool = False
    condition: bool = False
    default: bool = False
    function: str = ""
    """The function around it, empty at the top level, ``?`` for a method."""
    certain: bool = True
    """Whether it runs whenever its function does."""


@dataclass(slots=True)
class _Parsers:
    """What is known about the argparse parsers of the file."""

    names: set[str] = field(default_factory=set)
    complete: bool = True
    refuses: bool | None = None
    functions: set[str] = field(default_factory=set)


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.aliases: dict[str, str] = {}
        self.imports: set[str] = set()
        self.options: list[ScriptOption] = []
        self.seen: list[Seen] = []
        self.parsers = _Parsers()
        self.assigned: dict[str, ast.expr | None] = {}
        self.calls: set[tuple[str, str]] = set()
        self.needs: list[tuple[str, Seen]] = []
        self.starts = _line_starts(source.text)
        self.ascii = source.text.isascii()

    def program(self) -> Program:
        strict = self.parsers.refuses
        if strict and not self.parsers.complete:
            strict = None
        self.seen.sort(key=lambda seen: (seen.span.start, seen.span.end))
        return Program(self.source, frozenset(self.imports), tuple(self.options), strict, tuple(self.seen[:MAX_SEEN]))

    def read(self, tree: ast.Module) -> None:
        for node in _statements(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._bind_import(node)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.parsers.functions.add(node.name)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                self.assigned[name] = None if name in self.assigned else node.value
        for order, statement in enumerate(tree.body):
            self._visit(statement, _Place(order))
        reached = self._reached()
        self.seen.extend(seen for function, seen in self.needs if function in reached)

    def _reached(self) -> set[str]:
        """The functions that run whenever the program does; the empty name is the top level."""
        reached = {""}
        waiting = [""]
        while waiting:
            caller = waiting.pop()
            for function in [called for by, called in self.calls if by == caller and called not in reached]:
                reached.add(function)
                waiting.append(function)
        return reached

    def _visit(self, node: ast.AST, place: _Place) -> None:
        self._look(node, place)
        if isinstance(node, ast.If):
            self._visit_if(node, place)
            return
        frames = isinstance(node, _FRAMES)
        for child in ast.iter_child_nodes(node):
            if type(child) not in _LEAVES:
                self._visit(child, _inside(node, child, place) if frames else place)

    def _look(self, node: ast.AST, place: _Place) -> None:
        if isinstance(node, ast.Call):
            self._call(node, place)
        elif isinstance(node, ast.Attribute):
            self._attribute(node, place)
        elif isinstance(node, ast.Constant):
            self._constant(node, place)
        elif isinstance(node, ast.Subscript):
            self._subscript(node, place)
        elif isinstance(node, ast.Assign):
            self._assign(node, place)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                self._imported(alias.name, node, place)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            self._imported(node.module, node, place)

    def _visit_if(self, node: ast.If, place: _Place) -> None:
        self._visit(node.test, place)
        inside = place
        if _is_main_test(node.test):
            self._add("main-block", "", node.test, place)
        else:
            inside = replace(place, condition=True, certain=False)
        for child in (*node.body, *node.orelse):
            self._visit(child, inside)

    def _bind_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports.add(alias.name)
                bound = alias.asname or alias.name.split(".", maxsplit=1)[0]
                self.aliases[bound] = alias.name if alias.asname else bound
            return
        if node.level or node.module is None:
            return
        self.imports.add(node.module)
        for alias in node.names:
            self.imports.add(f"{node.module}.{alias.name}")
            self.aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _imported(self, name: str, node: ast.AST, place: _Place) -> None:
        top = name.split(".", maxsplit=1)[0]
        if top == "torch":
            self._add("imports-torch", name, node, place)
        elif top in _OTHER_PARSERS:
            self._add("other-parser", top, node, place)

    def _name(self, node: ast.AST) -> str:
        """The absolute dotted name of an expression, resolved through the imports; empty when it is none."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        parts.append(self.aliases.get(node.id, node.id))
        return ".".join(reversed(parts))

    def _add(self, kind: str, detail: str, node: ast.AST, place: _Place) -> None:
        self.seen.append(Seen(kind, detail, self._span(node), place.order))

    def _call(self, node: ast.Call, place: _Place) -> None:
        name = self._name(node.func)
        last = _last(node.func)
        if place.certain:
            self._called(node, name, place)
        kind = _NAMES.get(name)
        if kind is not None:
            self._named_call(kind, name, node, place)
        self._variables(node, name, place)
        self._arguments(node, name, last, place)
        self._devices(node, name, last, place)
        self._work(node, name, last, place)
        if last in _FRAMEWORK_CALLS and self.imports_any("llamafactory", "llmtuner"):
            self._add(_FRAMEWORK_CALLS[last], "conditional" if place.condition else last, node, place)
        for keyword in node.keywords:
            self._keyword(keyword, place)

    def _called(self, node: ast.Call, name: str, place: _Place) -> None:
        """Follow calls of the file's own functions, also of those handed over (``Fire(main)``)."""
        functions = self.parsers.functions
        if name in functions:
            self.calls.add((place.function, name))
        elif _NAMES.get(name) != "spawns-ranks":
            for argument in node.args:
                if isinstance(argument, ast.Name) and argument.id in functions:
                    self.calls.add((place.function, argument.id))
        if name == "colossalai.launch_from_torch":
            self._need(name, node, place)
        by_hand = any(keyword.arg == "dist_init_required" for keyword in node.keywords)
        if name in {"deepspeed.initialize", "deepspeed.init_distributed"} and not by_hand:
            self._need(name, node, place)

    def _need(self, detail: str, node: ast.AST, place: _Place) -> None:
        if place.certain:
            self.needs.append((place.function, Seen("needs-ranks", detail, self._span(node), place.order)))

    def _named_call(self, kind: str, name: str, node: ast.Call, place: _Place) -> None:
        detail = name
        if kind == "init-process-group":
            detail = self._init_method(node, place)
            by_hand = {"rank", "store"} & {keyword.arg for keyword in node.keywords}
            if detail in {"", "env://"} and not by_hand and name.startswith("torch."):
                self._need("init_process_group", node, place)
        elif kind == "set-device":
            argument = node.args[0] if node.args else None
            detail = self._text(argument)
            self._global_rank(argument, place)
        elif kind == "accelerator":
            detail = name.rsplit(".", 1)[-1]
        elif kind == "server" and place.condition:
            detail = "conditional"
        self._add(kind, detail, node, place)

    def _init_method(self, node: ast.Call, place: _Place) -> str:
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        method = keywords.get("init_method", node.args[1] if len(node.args) > 1 else None)
        if "rank" in keywords:
            self._add("explicit-rank", self._text(keywords["rank"]), keywords["rank"], place)
        text = _string(method)
        if text is None:
            return ""
        port = text.rsplit(":", 1)[-1]
        if port.isdigit() and text.startswith("tcp://") and method is not None:
            self._add("literal-port", port, method, place)
        return text

    def _variables(self, node: ast.Call, name: str, place: _Place) -> None:
        if name in {"os.environ.get", "os.getenv", "os.environ.pop", "environ.get", "getenv"}:
            variable = _string(node.args[0]) if node.args else None
            if variable is not None:
                self._read_variable(variable, node, place)
        elif name in {"os.environ.setdefault", "os.putenv"} and len(node.args) == 2:
            kind = "defaults-variable" if name.endswith("setdefault") else "sets-variable"
            self._set_variable(kind, node.args[0], node.args[1], node, place)
        elif name == "os.environ.update":
            self._update_variables(node, place)

    def _update_variables(self, node: ast.Call, place: _Place) -> None:
        for argument in node.args:
            if isinstance(argument, ast.Dict):
                for key, value in zip(argument.keys, argument.values, strict=True):
                    if key is not None:
                        self._set_variable("sets-variable", key, value, node, place)
        for keyword in node.keywords:
            if keyword.arg is not None:
                self._set_variable("sets-variable", ast.Constant(keyword.arg), keyword.value, node, place)

    def _read_variable(self, variable: str, node: ast.AST, place: _Place) -> None:
        self._add("reads-variable", variable, node, place)
        if variable == "LOCAL_RANK":
            self._add("local-rank-use", self._text(node), node, place)

    def _set_variable(self, kind: str, key: ast.expr, value: ast.expr, node: ast.AST, place: _Place) -> None:
        variable = _string(key)
        if variable is None:
            return
        text = _string(value)
        if text is None and isinstance(value, ast.Call) and self._name(value.func) == "str" and value.args:
            inner = value.args[0]
            text = str(inner.value) if isinstance(inner, ast.Constant) else None
        self._add(kind, variable if text is None else f"{variable}={text}", node, place)
        if variable == _MASTER_PORT and text is not None and text.isdigit():
            self._add("literal-port", text, node, place)

    def _arguments(self, node: ast.Call, name: str, last: str, place: _Place) -> None:
        """argparse: options, and whether the parser refuses what it does not know."""
        parsers = self.parsers
        if last == "ArgumentParser" and name in {"argparse.ArgumentParser", "ArgumentParser"}:
            parsers.complete &= not any(keyword.arg in {"parents", None} for keyword in node.keywords)
            return
        if last == "add_argument" and isinstance(node.func, ast.Attribute):
            self._option(node)
        elif last == "parse_known_args":
            parsers.refuses = False
        elif last == "parse_args" and isinstance(node.func, ast.Attribute):
            if parsers.refuses is None:
                parsers.refuses = True
            # A parser that somebody else made has options that this text does not show.
            made_here = self._made_here(node.func.value)
            parsers.complete &= made_here
        elif last == "add_config_arguments" and name.startswith("deepspeed"):
            span = self._span(node)
            flags = ("--deepspeed", "--deepspeed_config", "--deepscale", "--deepscale_config")
            self.options.extend(ScriptOption((flag,), span) for flag in flags)
        elif last in _DATACLASS_PARSERS:
            self._add("hf-argument-parser", last, node, place)
            parsers.complete = False
        elif self._hands_parser_on(node, last):
            parsers.complete = False

    def _made_here(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            return self._name(node.func) in {"argparse.ArgumentParser", "ArgumentParser"}
        if not isinstance(node, ast.Name):
            return False
        value = self.assigned.get(node.id)
        if isinstance(value, ast.Call):
            name = self._name(value.func)
            return name in {"argparse.ArgumentParser", "ArgumentParser"} or name in self.parsers.functions
        return False

    def _hands_parser_on(self, node: ast.Call, last: str) -> bool:
        if last in self.parsers.functions or last in {"print", "isinstance", "type", "len"}:
            return False
        return any(
            isinstance(argument, ast.Name)
            and isinstance(value := self.assigned.get(argument.id), ast.Call)
            and self._name(value.func) in {"argparse.ArgumentParser", "ArgumentParser"}
            for argument in node.args
        )

    def _option(self, node: ast.Call) -> None:
        flags = tuple(text for argument in node.args if (text := _string(argument)) is not None)
        if not flags or len(flags) != len(node.args):
            self.parsers.complete = False
        if any(keyword.arg is None for keyword in node.keywords):
            self.parsers.complete = False
        if flags:
            required = any(
                keyword.arg == "required" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                for keyword in node.keywords
            )
            self.options.append(ScriptOption(flags, self._span(node), required))

    def _devices(self, node: ast.Call, name: str, last: str, place: _Place) -> None:
        if name == "torch.device" and len(node.args) == 2 and _string(node.args[0]) == "cuda":
            index = node.args[1]
            if isinstance(index, ast.Constant) and isinstance(index.value, int):
                self._add("cuda-device", f"cuda:{index.value}", node, place)
        if last == "cuda" and isinstance(node.func, ast.Attribute) and name != "torch.cuda":
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and type(first.value) is int:
                self._add("cuda-device", f"cuda:{first.value}", node, place)
            self._add("cuda-call", ".cuda()", node, place)
        elif last == "to" and not place.condition and node.args and _string(node.args[0]) == "cuda":
            self._add("cuda-call", '.to("cuda")', node, place)
        elif name.startswith("torch.cuda.") and last != "set_device":
            self._add("cuda-call", name, node, place)
        if last == "from_pretrained":
            self._from_pretrained(node, place)
        elif (
            name == "torch.load"
            and not any(k.arg in {"map_location", None} for k in node.keywords)
            and len(node.args) < 2
        ):
            self._add("load", self._text(node.args[0] if node.args else None), node, place)

    def _from_pretrained(self, node: ast.Call, place: _Place) -> None:
        keywords = ", ".join(f"{k.arg}={self._text(k.value)}" for k in node.keywords if k.arg is not None)
        self._add("from-pretrained", keywords, node, place)
        model = _string(node.args[0]) if node.args else None
        if model is not None:
            self._add("model-name", model, node.args[0], place)

    def _work(self, node: ast.Call, name: str, last: str, place: _Place) -> None:
        if name.startswith("colossalai.launch") or name == "colossalai.initialize":
            self._add("colossalai-launch", name, node, place)
        elif last.endswith("Trainer") and last[:1].isupper() and last not in _TOKENIZER_TRAINERS:
            lightning = name.startswith(("pytorch_lightning.", "lightning.", "pl.", "L."))
            self._add("lightning-trainer" if lightning else "trainer", last, node, place)
        elif last in _SIMPLE_CALLS:
            kind = _SIMPLE_CALLS[last]
            if isinstance(node.func, ast.Attribute) or last in {"run_exp", "DDP", "DistributedDataParallel", "FSDP"}:
                self._add(kind, last, node, place)
        elif name.startswith("torch.optim."):
            self._add("optimizer", last, node, place)
        elif name == "input" and place.loop:
            self._add("input-loop", "conditional" if place.condition else "input()", node, place)
        elif name.startswith("subprocess.") or name in {"os.system", "os.popen", "os.execvp"}:
            launcher = _launcher_in(node)
            if launcher is not None:
                self._add("subprocess-launch", launcher, node, place)
        elif self._serves(node, last):
            self._add("server", "conditional" if place.condition else self._text(node.func), node, place)

    def _serves(self, node: ast.Call, last: str) -> bool:
        if not isinstance(node.func, ast.Attribute):
            return False
        if last == "launch":
            return self.imports_any("gradio", "llamafactory.webui", "llmtuner.webui") or any(
                name.rsplit(".", 1)[-1] in {"create_ui", "create_web_demo"} for name in self.imports
            )
        if last == "run" and isinstance(node.func.value, ast.Name):
            made = self.assigned.get(node.func.value.id)
            return isinstance(made, ast.Call) and self._name(made.func) in {
                "flask.Flask",
                "quart.Quart",
                "bottle.Bottle",
            }
        return last == "serve_forever"

    def imports_any(self, *packages: str) -> bool:
        return any(name == p or name.startswith(p + ".") for name in self.imports for p in packages)

    def _keyword(self, keyword: ast.keyword, place: _Place) -> None:
        if keyword.arg == "device_map":
            self._device_map(keyword.value, place)
        elif keyword.arg == "bf16" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
            self._add("bf16", "bf16=True", keyword.value, place)
        elif keyword.arg == "device":
            self._global_rank(keyword.value, place)

    def _device_map(self, value: ast.expr, place: _Place) -> None:
        node = value
        if isinstance(value, ast.Name):
            node = self.assigned.get(value.id) or value
        text = _string(node)
        if isinstance(node, ast.Constant) and node.value is None:
            return
        self._add("device-map", text if text is not None else self._text(node), value, place)
        self._global_rank(node, place)

    def _global_rank(self, node: ast.expr | None, place: _Place) -> None:
        """A device chosen by the rank among all machines, which is right on the first machine only."""
        if node is None:
            return
        inner = node
        if isinstance(node, ast.Name):
            inner = self.assigned.get(node.id) or node
        for part in ast.walk(inner):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) and not isinstance(part.left, ast.Constant):
                return
        for part in ast.walk(inner):
            by_index = isinstance(part, ast.Attribute) and part.attr == "process_index"
            by_rank = isinstance(part, ast.Call) and self._name(part.func) == "torch.distributed.get_rank"
            if by_index or by_rank or (isinstance(part, ast.expr) and self._reads_rank(part)):
                self._add("process-index-as-device", self._text(inner), node, place)
                return

    def _reads_rank(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Subscript):
            return self._name(node.value) == "os.environ" and _string(node.slice) == "RANK"
        if isinstance(node, ast.Call) and node.args:
            return self._name(node.func) in {"os.environ.get", "os.getenv"} and _string(node.args[0]) == "RANK"
        return False

    def _assign(self, node: ast.Assign, place: _Place) -> None:
        for target in node.targets:
            if isinstance(target, ast.Subscript) and self._name(target.value) in {"os.environ", "environ"}:
                self._set_variable("sets-variable", target.slice, node.value, node, place)

    def _subscript(self, node: ast.Subscript, place: _Place) -> None:
        if isinstance(node.ctx, ast.Load) and self._name(node.value) in {"os.environ", "environ"}:
            variable = _string(node.slice)
            if variable is not None:
                self._read_variable(variable, node, place)
                if variable in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}:
                    self._need(variable, node, place)

    def _attribute(self, node: ast.Attribute, place: _Place) -> None:
        if node.attr == "local_rank" and isinstance(node.ctx, ast.Load):
            self._add("local-rank-use", self._text(node), node, place)
        elif node.attr == "bfloat16" and self._name(node) == "torch.bfloat16":
            self._add("bf16", "torch.bfloat16", node, place)

    def _constant(self, node: ast.Constant, place: _Place) -> None:
        value = node.value
        if isinstance(value, str) and value.startswith("cuda:") and value[5:].isdigit():
            self._add("cuda-device-default" if place.default else "cuda-device", value, node, place)

    def _text(self, node: ast.AST | None) -> str:
        if node is None:
            return ""
        span = self._span(node)
        text = self.source.text[span.start : span.end] if span.end > span.start else ""
        return text if len(text) <= _EXPRESSION_LENGTH else text[:_EXPRESSION_LENGTH] + "…"

    def _span(self, node: ast.AST) -> Span:
        if not isinstance(node, (ast.expr, ast.stmt, ast.arg, ast.keyword)) or not hasattr(node, "lineno"):
            return Span(0, 0)
        start = self._offset(node.lineno, node.col_offset)
        if node.end_lineno is None or node.end_col_offset is None:
            return Span(start, start)
        return Span(start, max(self._offset(node.end_lineno, node.end_col_offset), start))

    def _offset(self, line: int, column: int) -> int:
        """Python counts columns in UTF-8 bytes; everything else here counts code points."""
        text = self.source.text
        start = self.starts[min(line, len(self.starts)) - 1]
        if self.ascii:
            return min(start + column, len(text))
        end = self.starts[line] if line < len(self.starts) else len(text)
        head = text[start:end].encode("utf-8", "surrogatepass")[:column]
        return min(start + len(head.decode("utf-8", "ignore")), len(text))


_FRAMEWORK_CALLS = {
    "run_chat": "input-loop",
    "run_api": "server",
    "run_web_demo": "server",
    "run_web_ui": "server",
    "export_model": "export-model",
}
"""LLaMA-Factory's entries (llamafactory 0.9.3, cli.py main())."""

_SIMPLE_CALLS = {
    "run_exp": "run-exp",
    "backward": "backward",
    "generate": "generate",
    "predict": "predict",
    "DDP": "ddp",
    "DistributedDataParallel": "ddp",
    "FSDP": "fsdp",
}


_LEAVES = frozenset({ast.Name, ast.Load, ast.Store, ast.Del, ast.Pass, ast.Break, ast.Continue, ast.alias, ast.Global})
_FRAMES = (
    ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.arguments, ast.For, ast.AsyncFor, ast.While, ast.Try,
    ast.IfExp, ast.BoolOp, ast.comprehension, ast.Lambda, ast.ExceptHandler, ast.ClassDef,
)  # fmt: skip
"""Nodes that put something around their children."""


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Every statement, without going into expressions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            for child in getattr(node, name, ()):
                if isinstance(child, ast.stmt):
                    yield child
                waiting.append(child)


def _inside(node: ast.AST, child: ast.AST, place: _Place) -> _Place:
    """The place of a child: what its parent puts around it."""
    if isinstance(node, (ast.While, ast.For, ast.AsyncFor)):
        return replace(place, loop=True, certain=False)
    if isinstance(node, ast.arguments) or (isinstance(node, ast.Call) and _last(node.func) in _DECLARING):
        return replace(place, default=True)
    if isinstance(node, (ast.Try, ast.IfExp, ast.BoolOp, ast.comprehension, ast.Lambda, ast.ExceptHandler)):
        return replace(place, certain=False)
    if isinstance(node, ast.ClassDef):
        return replace(place, function="?")
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if child in node.decorator_list or child is node.args:
            return place
        return replace(place, function="?" if place.function else node.name, certain=True, condition=False, loop=False)
    return place


def _line_starts(text: str) -> list[int]:
    """Where the lines start as Python counts them: a lone carriage return ends a line too."""
    starts = [0]
    at = 0
    while True:
        newline = text.find("\n", at)
        carriage = text.find("\r", at, newline if newline >= 0 else len(text))
        if carriage >= 0 and carriage + 1 != newline:
            at = carriage + 1
        elif newline >= 0:
            at = newline + 1
        else:
            return starts
        starts.append(at)


def _string(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_main_test(node: ast.expr) -> bool:
    if not isinstance(node, ast.Compare) or len(node.comparators) != 1:
        return False
    sides = (node.left, node.comparators[0])
    names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
    return names and any(_string(side) == "__main__" for side in sides)


def _launcher_in(node: ast.Call) -> str | None:
    for text in _strings(node):
        for word in text.split():
            name = word.rsplit("/", 1)[-1]
            if name in _LAUNCHER_WORDS:
                return name
    return None


def _strings(node: ast.Call) -> Iterator[str]:
    for argument in node.args:
        for part in ast.walk(argument):
            text = _string(part)
            if text is not None:
                yield text
