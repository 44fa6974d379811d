"""How far one argument is handed on: the calls of the library, and its modules, through which a caller's argument goes.

The count is read off the source. A function is handed the argument where a call of it has, among its arguments, the name of
the argument, a part of it (an attribute, an item, what a loop over it gives), or a list or tuple of these. From there on the
parameter that received it is followed likewise. What a function makes of its argument, such as an array, is another thing
and is followed no further. Calls whose function cannot be told from the source, such as methods of other objects, end a chain.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import daedalus


class Function(NamedTuple):
    """A function of the library, or a class without a constructor of its own."""

    module: str
    name: str
    node: Any


class Library:
    """The functions of a package, and what the names in its modules stand for."""

    def __init__(self, package: Path):
        self.known: dict[str, Function] = {}   # by full name
        self.bases: dict[str, list[str]] = {}
        self.trees, self.names = {}, {}
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if parts[-1] == "_modidx":
                continue
            self.trees[module] = ast.parse(path.read_text(encoding="utf-8"))
            self._index(module, self.trees[module].body, module)
            self.names[module] = imported(self.trees[module], module, parts[-1] == "__init__")

    def _index(self, module, body, prefix):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.known[f"{prefix}.{node.name}"] = Function(module, f"{prefix}.{node.name}", node)
            elif isinstance(node, ast.ClassDef):
                name = f"{prefix}.{node.name}"
                self.known[name] = Function(module, name, node)
                self.bases[name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                self._index(module, node.body, name)
            elif isinstance(node, (ast.If, ast.Try)):
                self._index(module, node.body, prefix)

    def _method(self, owner: str, name: str, module: str) -> Function | None:
        if (here := self.known.get(f"{owner}.{name}")) is not None:
            return here
        for base in self.bases.get(owner, ()):
            above = self.resolve(base, module)
            if above and (method := self._method(above.name, name, above.module)):
                return method
        return None

    def resolve(self, name: str, module: str, own: Mapping[str, str] = {}) -> Function | None:
        """What a name in a module stands for."""
        full = own.get(name) or self.names[module].get(name, f"{module}.{name}")
        for _ in range(3):   # names that are imported again from elsewhere
            if full in self.known:
                return self.known[full]
            place, _, last = full.rpartition(".")
            full = self.names.get(place, {}).get(last, full)
        return None

    def callee(self, node: ast.expr, caller: Function) -> Function | None:
        """The function that an expression names."""
        own = imported(caller.node, caller.module, False)
        if isinstance(node, ast.Name):
            return self.resolve(node.id, caller.module, own)
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return None
        owner, name = node.value.id, node.attr
        if owner in ("self", "cls"):
            return self._method(caller.name.rpartition(".")[0], name, caller.module)
        if above := self.resolve(owner, caller.module):
            return self._method(above.name, name, above.module)
        return self.known.get(f"{self.names[caller.module].get(owner)}.{name}")


def imported(tree, module, package):
    """What imported names stand for, also those that functions import."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            place = node.module or ""
            if node.level:
                above = module.split(".")[:len(module.split(".")) - node.level + package]
                place = ".".join([*above, *([place] if place else [])])
            names |= {alias.asname or alias.name: f"{place}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}
    return names


def holds(node, names):
    """Whether an expression is the argument, a part of it, or a list of these."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        return holds(node.value, names)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return any(holds(each, names) for each in node.elts)
    if isinstance(node, ast.Dict):
        return any(holds(each, names) for each in node.values if each)
    if isinstance(node, ast.IfExp):
        return holds(node.body, names) or holds(node.orelse, names)
    if isinstance(node, ast.BoolOp):
        return any(holds(each, names) for each in node.values)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return holds(node.elt, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):   # a list of one, repeated
        return holds(node.left, names) and isinstance(node.left, (ast.List, ast.Tuple))
    return False


def targets(node):
    """The names that an assignment, or a loop, gives."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def followed(body, names):
    """The names of an argument and its parts in a function."""
    names, before = set(names), None
    while names != before:
        before = set(names)
        for node in ast.walk(body):
            if isinstance(node, ast.Assign) and holds(node.value, names):
                for target in node.targets:
                    if isinstance(target, (ast.Name, ast.Tuple)):
                        names |= targets(target)
            elif isinstance(node, (ast.For, ast.comprehension)):
                over = node.iter.args if isinstance(node.iter, ast.Call) else [node.iter]
                if any(holds(each, names) for each in over):
                    names |= targets(node.target)
            elif isinstance(node, ast.NamedExpr) and holds(node.value, names):
                names.add(node.target.id)
    return names


def received(function, call, names, shift=0):
    """The parameters of a function that a call hands the argument to."""
    node = function.node
    if isinstance(node, ast.ClassDef):
        return set()
    every = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
    bound = function.name.count(".") and every[:1] in (["self"], ["cls"])
    places = every[1:] if bound else every
    taken = {place for place, given in zip(places, call.args[shift:]) if holds(given, names)}
    if len(call.args) - shift > len(places) and node.args.vararg and any(holds(x, names) for x in call.args[shift + len(places):]):
        taken.add(node.args.vararg.arg)
    for given in call.keywords:
        if holds(given.value, names):
            allowed = {*every, *(each.arg for each in node.args.kwonlyargs)}
            taken |= {given.arg} & allowed or ({node.args.kwarg.arg} if node.args.kwarg else set())
    return taken


def handed_on(library: Library, start: str, parameter: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The calls by which an argument is handed on, as (caller, called), and the modules that they reach."""
    owner, _, name = start.rpartition(".")
    first = library.known.get(start) or library._method(owner, name, library.known[owner].module)
    calls, seen, waiting = set(), set(), [(first, frozenset([parameter]))]
    while waiting:
        caller, given = waiting.pop()
        if (caller.name, given) in seen:
            continue
        seen.add((caller.name, given))
        names = followed(caller.node, given)
        for call in (node for node in ast.walk(caller.node) if isinstance(node, ast.Call)):
            if not any(holds(each, names) for each in (*call.args, *(word.value for word in call.keywords))):
                continue
            called, shift = library.callee(call.func, caller), 0
            by = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if by in ("partial", "map", "submit") and isinstance(call.args[0], ast.Name):
                called, shift = library.resolve(call.args[0].id, caller.module), 1
            if called is None:
                continue
            if isinstance(called.node, ast.ClassDef):
                called = library._method(called.name, "__init__", called.module) or called
            calls.add((caller.name, called.name))
            if taken := received(called, call, names, shift):
                waiting.append((called, frozenset(taken)))
    modules = {first.module, *(library.known[called].module for _, called in calls)}
    return sorted(calls), sorted(modules)


CHAINS = {   # where an argument enters, its name, and how many calls and modules may see it: no more than now
    ("daedalus.env.DaedalusEnv.step", "mechanism"): (6, 2),
    ("daedalus.studies.evaluate.evaluate", "suite"): (4, 2),
    ("daedalus.cli.train", "profile"): (6, 4),
    ("daedalus.training.grpo.reinforce", "settings"): (11, 4)}   # policy shares a batch among processes


@pytest.mark.parametrize(("start", "parameter"), CHAINS)
def test_an_argument_goes_through_few_hands(start, parameter):
    calls, modules = handed_on(Library(Path(daedalus.__path__[0])), start, parameter)
    assert (len(calls), len(modules)) <= CHAINS[start, parameter] and len(modules) <= CHAINS[start, parameter][1], calls


def test_an_argument_is_followed_by_name_part_and_loop(tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text("")
    (tmp_path / "house" / "cellar.py").write_text("def store(what, where): return what\n")
    (tmp_path / "house" / "door.py").write_text(
        "from .cellar import store as keep\n"
        "def enter(guest, others):\n"
        "    keep(others, guest.coat)\n"
        "    for each in guest.bags: greet(each)\n"
        "    made = str(guest)\n"
        "    greet(made)\n"
        "    greet(others)\n"
        "def greet(one): return wave([one])\n"
        "def wave(all): return all\n")
    calls, modules = handed_on(Library(tmp_path / "house"), "house.door.enter", "guest")
    assert calls == [("house.door.enter", "house.cellar.store"), ("house.door.enter", "house.door.greet"),
                     ("house.door.greet", "house.door.wave")] and modules == ["house.cellar", "house.door"]
