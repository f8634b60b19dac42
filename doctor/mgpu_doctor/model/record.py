"""``dataclass`` for the slotted records of this program, at a fraction of the cost of importing them.

The standard library compiles six methods for each class when its module is imported, and imports
``inspect``; for the types of this program that is a third of the time that ``explain`` may take in all.
Here the methods are shared, and a constructor is compiled only for the types that many instances are made of. To
type checkers these names are the standard library's own, and ``dataclasses.fields``, ``replace`` and
``asdict`` work on the classes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass", "field", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    _MISSING = object()
    _FEW = 4
    # Compiling a constructor costs as much as some twenty calls without one.

    class _Field:
        __slots__ = ("default", "default_factory")

        def __init__(self, default: Any, default_factory: Any) -> None:
            self.default = default
            self.default_factory = default_factory

    def field(*, default: Any = _MISSING, default_factory: Any = _MISSING) -> _Field:
        """A default that is made anew for each instance, or a plain one."""
        return _Field(default, default_factory)

    def dataclass(*, slots: bool, frozen: bool = False) -> Any:
        """Decorate a class whose annotations are its fields; only slotted ones without a base are offered."""
        assert slots
        return _frozen if frozen else _changeable

    def replace(instance: Any, /, **changes: Any) -> Any:
        """A copy with some fields changed."""
        for name in instance.__match_args__:
            if name not in changes:
                changes[name] = getattr(instance, name)
        return type(instance)(**changes)

    def _frozen(template: type) -> type:
        methods = {"__hash__": _hash, "__setattr__": _refuse, "__delattr__": _refuse}
        return _record(template, methods)

    def _changeable(template: type) -> type:
        return _record(template, {"__hash__": None})

    def _record(template: type, methods: dict[str, Any]) -> type:
        names = tuple(template.__annotations__)
        namespace = dict(template.__dict__)
        for name in ("__dict__", "__weakref__"):
            namespace.pop(name, None)
        defaults = {name: namespace.pop(name) for name in names if name in namespace}
        namespace.update(
            __slots__=names,
            __match_args__=names,
            __init__=_first_init,
            __eq__=_eq,
            __repr__=namespace.get("__repr__", _repr),
            __getstate__=_getstate,
            __setstate__=_setstate,
            __dataclass_fields__=_Fields(defaults),
            record_values=staticmethod(attrgetter(*names) if names else lambda _: ()),
            record_defaults=defaults,
            record_names=frozenset(names),
            record_made=0,
            **methods,
        )
        return type(template)(template.__name__, template.__bases__, namespace)

    def _first_init(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        cls.record_made += 1
        if cls.record_made <= _FEW and _fill(self, cls, args, kwargs):
            return
        init = _compiled_init(cls)
        cls.__init__ = init
        # Also raises the right TypeError for arguments that do not fit.
        init(self, *args, **kwargs)

    def _fill(self: Any, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Set every field of one of a class's first instances; False when the arguments do not fit."""
        names = cls.__match_args__
        values = dict(zip(names, args, strict=False))
        if len(args) > len(names) or not values.keys().isdisjoint(kwargs):
            return False
        values.update(kwargs)
        if len(values) < len(names):
            for name, default in cls.record_defaults.items():
                if name in values:
                    continue
                if isinstance(default, _Field):
                    made = default.default_factory
                    default = default.default if made is _MISSING else made()  # noqa: PLW2901
                values[name] = default
        if len(values) != len(names) or not values.keys() <= cls.record_names:
            return False
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return True

    def _compiled_init(cls: type) -> Any:
        parameters, body = [], []
        scope: dict[str, Any] = {"_missing": _MISSING}
        for name in cls.__match_args__:
            scope[f"_set_{name}"] = getattr(cls, name).__set__
            default = cls.record_defaults.get(name, _MISSING)
            parameter, value = name, name
            if isinstance(default, _Field):
                if default.default_factory is not _MISSING:
                    scope[f"_make_{name}"] = default.default_factory
                    parameter = f"{name}=_missing"
                    value = f"_make_{name}() if {name} is _missing else {name}"
                    default = _MISSING
                else:
                    default = default.default
            if default is not _MISSING:
                scope[f"_default_{name}"] = default
                parameter = f"{name}=_default_{name}"
            parameters.append(parameter)
            body.append(f" _set_{name}(self, {value})")
        source = f"def __init__(self, {', '.join(parameters)}):\n" + ("\n".join(body) or " pass")
        exec(source, scope)  # noqa: S102 - the source is made of field names alone
        init = scope["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        return init

    def _eq(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self is other or self.record_values(self) == other.record_values(other)

    def _hash(self: Any) -> int:
        return hash(self.record_values(self))

    def _repr(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({shown})"

    def _refuse(self: Any, name: str, *_: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"{type(self).__name__} cannot be changed: {name!r}")

    def _getstate(self: Any) -> list[Any]:
        return [getattr(self, name) for name in self.__match_args__]

    def _setstate(self: Any, state: list[Any]) -> None:
        for name, value in zip(self.__match_args__, state, strict=True):
            object.__setattr__(self, name, value)

    class _Fields:
        """``__dataclass_fields__``, made when somebody asks."""

        __slots__ = ("defaults",)

        def __init__(self, defaults: dict[str, Any]) -> None:
            self.defaults = defaults

        def __get__(self, instance: Any, owner: Any) -> Any:
            import dataclasses

            made = []
            for name in owner.__match_args__:
                default = self.defaults.get(name, _MISSING)
                options: dict[str, Any] = {}
                if isinstance(default, _Field):
                    parts = (("default", default.default), ("default_factory", default.default_factory))
                    options = {key: value for key, value in parts if value is not _MISSING}
                elif default is not _MISSING:
                    options = {"default": default}
                made.append((name, owner.__annotations__[name], dataclasses.field(**options)))
            fields = dataclasses.make_dataclass(owner.__name__, made).__dataclass_fields__
            owner.__dataclass_fields__ = fields
            return fields
