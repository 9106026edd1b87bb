"""What the engine lets pass and OPA refuses, found in the compiled plan, before a policy decides anything.

A name that is nowhere defined is undefined at run time, and `not` of it true: a slip of the pen would open the gate. So
would a function that does not exist; and of `not` within `every` the engine (1.5.2) loses the variable. OPA calls them unsafe variables and undefined functions, and recursion an error.
The plan is OPA's intermediate representation (https://www.openpolicyagent.org/docs/ir), as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

INPUT_AND_DATA = frozenset((0, 1))
_WRITTEN = ("target", "result")
_READ = ("source", "object", "array", "set", "local")
"""What is a local variable by its bare number; elsewhere bare numbers are numbers."""

Object = Mapping[str, object]


class PolicyFault(Exception):
    """What is wrong, and in which line, from 1; 0 where nobody knows."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


def check(plan: Object, known: Callable[[str], bool]) -> None:
    """`known` says whether the engine has a built-in function. Raises PolicyFault."""
    functions = {cast("str", each["name"]): each for each in _list(plan, "funcs", "funcs")}
    calls: dict[str, set[str]] = {}
    for name, function in functions.items():
        calls[name] = set()
        for statement in _statements(function.get("blocks")):
            callee = statement.get("func")
            if isinstance(callee, str):
                calls[name].add(callee)
                if callee not in functions and not known(callee):
                    raise PolicyFault(f"there is no function {callee}", _line(statement))
        _check_names(function)
    _check_recursion(calls)


def _check_names(function: Object) -> None:
    defined = set(INPUT_AND_DATA) | {cast("int", each) for each in cast("Sequence[object]", function.get("params", ()))}
    statements = list(_statements(function.get("blocks")))
    for statement in statements:
        if statement["type"] == "ResetLocalStmt":
            continue
        written = (*_WRITTEN, "key", "value") if statement["type"] == "ScanStmt" else _WRITTEN
        defined |= {value for key in written if isinstance(value := statement.get(key), int)}
    for statement in statements:
        if statement["type"] in ("ReturnLocalStmt", "ScanStmt", "IsDefinedStmt", "IsUndefinedStmt"):
            # A rule's own value may have no way to become defined; what is scanned is found by its operands elsewhere.
            read = {statement["source"]} if statement["type"] == "ScanStmt" else set[object]()
        else:
            read = {local for key in _READ if isinstance(local := statement.get(key), int)}
        read |= {local for operand in statement.values() for local in _locals(operand)}
        if any(isinstance(local, int) and local not in defined for local in read):
            raise PolicyFault("a name is used that is not defined there; within `every`, a `not` needs a rule of its own", _line(statement))


def _locals(operand: object) -> Iterator[object]:
    """The local variables that an operand names, or a list of them."""
    if isinstance(operand, list):
        for each in operand:
            yield from _locals(each)
    elif isinstance(operand, Mapping) and operand.get("type") == "local":
        yield operand["value"]


def _check_recursion(calls: Mapping[str, set[str]]) -> None:
    done: set[str] = set()
    for start in calls:
        path: list[tuple[str, Iterator[str]]] = [(start, iter(calls[start]))] if start not in done else []
        on_path = {start}
        while path:
            name, callees = path[-1]
            callee = next(callees, None)
            if callee is None:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif callee in on_path:
                raise PolicyFault(f"{callee.removeprefix('g0.')} is recursive")
            elif callee in calls and callee not in done:
                path.append((callee, iter(calls[callee])))
                on_path.add(callee)


def _statements(found: object) -> Iterator[Object]:
    """Every statement, those in blocks of others too, with its `type`."""
    if isinstance(found, Mapping):
        if isinstance(found.get("stmt"), Mapping):
            yield {**cast("Object", found["stmt"]), "type": found["type"]}
        for each in found.values():
            yield from _statements(each)
    elif isinstance(found, list):
        for each in found:
            yield from _statements(each)


def _line(statement: Object) -> int:
    row = statement.get("row")
    return row + 1 if isinstance(row, int) else 0


def _list(plan: Object, *keys: str) -> Sequence[Object]:
    found: object = plan
    for key in keys:
        found = cast("Object", found).get(key, {})
    return cast("Sequence[Object]", found or ())
