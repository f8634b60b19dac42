"""Where ``device_map="auto"`` puts a model's modules.

accelerate 0.26.1 to 1.15.0, utils/modeling.py get_balanced_memory() and infer_auto_device_map(), which transformers 4
calls (*ran*: 0.26.1, 0.34.2, 1.0.1, 1.3.0, 1.7.0 and 1.15.0 give the same maps); transformers 5.0.0 to 5.6.0,
integrations/accelerate.py, has its own of the same form. ``auto`` means balanced: each card but the last gets an equal
share of the model and room for a little more than a layer, so that a model is spread even where it would fit on one
card. Only ``sequential`` fills the first card first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mgpu_doctor.memory.module_tree import Module, Tree
from mgpu_doctor.model.memory import CardLoad, Placement

Device = int | str
_Item = tuple[str, "Module | None"]


def balanced_memory(
    tree: Tree, memory: Mapping[Device, float], *, low_zero: bool = False, limited: bool = False
) -> dict[Device, float]:
    """The room on each device that a balanced map may use, in bytes.

    ``memory`` is what is free, or with ``limited`` what the user allows; ``low_zero`` keeps the first card empty.
    """
    room = dict(memory)
    cards = sorted(device for device in room if isinstance(device, int) and room[device] > 0)
    if not cards:
        return room
    low_zero = low_zero and len(cards) > 1
    if len(cards) == 1 and not limited:
        room[cards[0]] *= 0.9
    total = tree.sizes.get("", 0)
    share: float = total // (len(cards) - 1 if low_zero else len(cards))
    mean = int(sum(tree.sizes[name] for name in tree.leaves) / max(len(tree.leaves), 1))
    share += int(1.25 * max(tree.sizes.get(tree.layer, 0), mean))
    for card in cards[:-1]:
        room[card] = min(room[0] if low_zero and card == 0 else share, room[card])
    if low_zero:
        others = sum(room[card] for card in range(1, len(cards)))
        room[0] = min(max(0, total - others), room[0])
    return room


def place(tree: Tree, room: Mapping[Device, float]) -> dict[str, Device]:
    """The device map for so much room: module names and the device of each, ``disk`` where nothing else is left."""
    return _cleaned(_Placer(tree, room).run())


def placement(tree: Tree, found: Mapping[str, Device]) -> Placement:
    """A device map in terms of what each card holds."""
    modules = tuple(sorted(found.items(), key=lambda item: _position(tree, item[0])))
    cards = sorted({device for _, device in modules if isinstance(device, int)})
    loads = []
    for card in cards:
        names = tuple(name or "the whole model" for name, device in modules if device == card)
        share = sum(tree.sizes.get(name, 0) for name, device in modules if device == card)
        loads.append(CardLoad(card, share, names))
    host = sum(tree.sizes.get(name, 0) for name, device in modules if isinstance(device, str))
    return Placement(modules, tuple(loads), host)


def _position(tree: Tree, name: str) -> tuple[int, ...]:
    """Where a module stands among its sisters, at each level of its name."""
    found: list[int] = []
    module: Module | None = tree.root
    while module is not None and module.name != name:
        below = [
            index
            for index, child in enumerate(module.children)
            if name == child.name or name.startswith(f"{child.name}.")
        ]
        if not below:
            break
        found.append(below[0])
        module = module.children[below[0]]
    return tuple(found)


class _Placer:
    """One run of accelerate's loop: modules in order onto devices in order, divided where they do not fit whole."""

    def __init__(self, tree: Tree, room: Mapping[Device, float]) -> None:
        self.tree = tree
        self.room = room
        self.devices: list[Device] = [*room, *(() if "disk" in room else ("disk",))]
        cards = [device for device in self.devices if device not in ("cpu", "disk")]
        # On these, room for the largest layer is kept free, for layers that come back from the host.
        self.main: tuple[Device, ...] = (cards[0], "cpu") if cards else ("cpu",)
        self.used: dict[Device, float] = dict.fromkeys(self.devices, 0)
        self.waiting: list[_Item] = [*_direct(tree.root)]
        self.map: dict[str, Device] = {}
        self.current = 0
        self.largest, self.largest_names = self._largest_layer()

    def run(self) -> dict[str, Device]:
        while self.waiting:
            name, module = self.waiting.pop(0)
            self.largest_names = [n for n in self.largest_names if n != name and not n.startswith(f"{name}.")]
            if not self.largest_names:
                self.largest, self.largest_names = self._largest_layer()
            self._treat(name, module)
        return self.map

    def _treat(self, name: str, module: Module | None) -> None:
        size = self.tree.sizes.get(name, 0)
        ties = self._ties_outside(name)
        device = self.devices[self.current]
        limit = self._limit(device)
        tied, with_ties = self._with_ties(ties, size)
        if limit is None or self.used[device] + with_ties <= limit:
            self._put(name, tied, device, with_ties)
            return
        if ties and self.used[device] + size <= limit and self._divide_tied(name, module, tied):
            return
        if self.used[device] + size >= limit and module is not None and module.children and not module.whole:
            self.waiting = [*_direct(module), *self.waiting]
            self.largest, self.largest_names = self._largest_layer()
            return
        self.used[device] += self.largest if device in self.main else 0
        self.current += 1
        self.waiting.insert(0, (name, module))

    def _limit(self, device: Device) -> float | None:
        if device == "disk":
            return None
        return self.room[device] - (self.largest if device in self.main else 0)

    def _ties_outside(self, name: str) -> list[str]:
        """Parameters outside a module that are tied to one inside it."""
        inside = f"{name}."
        found = []
        for group in self.tree.ties:
            within = [inside in f"{key}." for key in group]
            if any(within) and not all(within):
                found += [key for key in group if inside not in f"{key}."]
        return found

    def _with_ties(self, ties: Sequence[str], size: int) -> tuple[list[_Item], int]:
        """The modules still waiting that hold the tied parameters, and the size with them."""
        tied = []
        for parameter in ties:
            holder = next((item for item in self.waiting if parameter.startswith(f"{item[0]}.")), None)
            if holder is not None:
                tied.append(holder)
                size += self.tree.sizes.get(holder[0], 0) - self.tree.sizes.get(parameter, 0)
        return tied, size

    def _put(self, name: str, tied: Sequence[_Item], device: Device, size: int) -> None:
        self.used[device] += size
        self.map[name] = device
        for item in tied:
            if item in self.waiting:
                self.waiting.remove(item)
            self.map[item[0]] = device

    def _divide_tied(self, name: str, module: Module | None, tied: Sequence[_Item]) -> bool:
        """Replace the first tied module that can be divided by its parts; False when none can."""
        for holder in tied:
            inner = holder[1]
            if inner is None or not inner.children or inner.whole:
                continue
            at = self.waiting.index(holder)
            self.waiting[at : at + 1] = _direct(inner)
            self.waiting.insert(0, (name, module))
            self.largest, self.largest_names = self._largest_layer()
            return True
        return False

    def _largest_layer(self) -> tuple[int, list[str]]:
        """The size of the largest module still waiting that is not divided, and the names of those of that size."""
        size, names = 0, list[str]()
        to_look_at = [module for _, module in self.waiting if module is not None]
        while to_look_at:
            module = to_look_at.pop(0)
            if module.children and not module.whole:
                to_look_at = [*module.children, *to_look_at]
                continue
            own = self.tree.sizes.get(module.name, 0)
            if own > size:
                size, names = own, [module.name]
            elif own == size:
                names.append(module.name)
        return size, names


def _direct(module: Module) -> list[_Item]:
    """A module's parts: its parameters, then its children."""
    return [*((name, None) for name in module.tensors), *((child.name, child) for child in module.children)]


def _cleaned(found: dict[str, Device], name: str = "") -> dict[str, Device]:
    """Accelerate's clean_device_map(): modules whose parts all lie on one device are named as one."""
    prefix = f"{name}." if name else ""
    inside = [key for key in found if key.startswith(prefix)]
    if len(inside) > 1 and len({found[key] for key in inside}) == 1:
        device = found[inside[0]]
        for key in inside:
            del found[key]
        found[name] = device
    depth = name.count(".") + 2 if name else 1
    below = {".".join(key.split(".")[:depth]) for key in found if key.startswith(prefix) and len(key) > len(name)}
    for child in sorted(below):
        _cleaned(found, child)
    return found
