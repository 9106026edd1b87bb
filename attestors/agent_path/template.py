"""A template that was read, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from attestors.agent_path.nodes import Action, Branch, Call, Dot, Expression, Field, Literal, Node, Text, Variable
from attestors.agent_path.parser import parse
from attestors.agent_path.values import Value, as_list, as_mapping, is_true, kind_of, show
from operations.errors import InvalidArgument
from operations.quoting import quote

_MOST = 10_000

_LAZY = {"and": False, "or": True}
"""Functions that stop at the first argument of this truth."""


@dataclass(frozen=True, slots=True)
class Template:
    """Made by `parse`, which is for start-up; `render` may be called from any thread."""

    _nodes: Sequence[Node]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidArgument for what cannot work whatever the data."""
        return cls(parse(text))

    def root_fields(self) -> frozenset[str]:
        """The names that the template asks the data itself for; not those it asks what is inside."""
        return frozenset(_root_fields(self._nodes, Dot()))

    def render(self, data: Mapping[str, Value]) -> str:
        """Raises InvalidArgument for data that has not what the template asks for."""
        output: list[str] = []
        _Evaluation(output, data).run(self._nodes, data, {"$": [data]})
        return "".join(output)


def _root_fields(nodes: Iterable[Node], root: Dot | None) -> Iterator[str]:
    """`root` is None where the dot is something else than the data."""
    for node in nodes:
        match node:
            case Text():
                pass
            case Action():
                yield from _named(node.value, root)
            case Branch():
                yield from _named(node.value, root)
                yield from _root_fields(node.body, root if node.keyword == "if" else None)
                yield from _root_fields(node.otherwise, root)


def _named(expression: Expression, root: Dot | None) -> Iterator[str]:
    match expression:
        case Field():
            if expression.of in (root, Variable("$")):
                yield expression.name
            yield from _named(expression.of, root)
        case Call():
            for argument in expression.arguments:
                yield from _named(argument, root)
        case _:
            pass


Scope = dict[str, list[Value]]
"""Variables by name, each in a list of one so that an inner scope can set an outer one's."""


class _Evaluation:
    def __init__(self, output: list[str], root: Value) -> None:
        self._output = output
        self._root = root

    def run(self, nodes: Iterable[Node], dot: Value, scope: Scope) -> None:
        for node in nodes:
            match node:
                case Text():
                    self._output.append(node.text)
                case Action():
                    self._act(node, dot, scope)
                case Branch():
                    self._branch(node, dot, dict(scope))

    def _act(self, action: Action, dot: Value, scope: Scope) -> None:
        value = self._value(action.value, dot, scope)
        if not action.variable:
            self._output.append(show(value))
        elif action.declares:
            scope[action.variable] = [value]
        else:
            scope[action.variable][0] = value

    def _branch(self, branch: Branch, dot: Value, scope: Scope) -> None:
        value = self._value(branch.value, dot, scope)
        if branch.keyword == "range":
            self._range(branch, value, dot, scope)
            return
        for name in branch.variables:
            scope[name] = [value]
        if is_true(value):
            self.run(branch.body, value if branch.keyword == "with" else dot, scope)
        else:
            self.run(branch.otherwise, dot, scope)

    def _range(self, branch: Branch, value: Value, dot: Value, scope: Scope) -> None:
        pairs = _pairs(value)
        if not pairs:
            self.run(branch.otherwise, dot, scope)
        for index, item in pairs:
            inner = dict(scope)
            # A single variable is the value; of two the first is the index.
            for name, bound in zip(branch.variables, (index, item)[-len(branch.variables) :], strict=False):
                inner[name] = [bound]
            self.run(branch.body, item, inner)

    def _value(self, expression: Expression, dot: Value, scope: Scope) -> Value:
        match expression:
            case Literal():
                return expression.value
            case Dot():
                return dot
            case Variable():
                return scope[expression.name][0]
            case Field():
                return _field(self._value(expression.of, dot, scope), expression.name)
            case Call():
                return self._call(expression, dot, scope)

    def _call(self, call: Call, dot: Value, scope: Scope) -> Value:
        if call.name in _LAZY:
            value: Value = None
            for argument in call.arguments:
                value = self._value(argument, dot, scope)
                if is_true(value) is _LAZY[call.name]:
                    break
            return value
        return call.function.call(call.name, [self._value(argument, dot, scope) for argument in call.arguments])


def _field(value: Value, name: str) -> Value:
    mapping = as_mapping(value)
    if mapping is None:
        raise InvalidArgument(f"can't evaluate field {name} in a {kind_of(value)}")
    if name not in mapping:
        raise InvalidArgument(
            f"there is no {quote(name)}; there are {', '.join(sorted(mapping)) or 'no fields at all'}"
        )
    return mapping[name]


def _pairs(value: Value) -> list[tuple[Value, Value]]:
    if (items := as_list(value)) is not None:
        return list(enumerate(items))
    if (mapping := as_mapping(value)) is not None:
        return [(key, mapping[key]) for key in sorted(mapping)]
    if isinstance(value, int) and not isinstance(value, bool):
        if value > _MOST:
            raise InvalidArgument(f"range over {value} is too long: at most {_MOST}")
        return [(number, number) for number in range(value)]
    if value is None:
        return []
    raise InvalidArgument(f"range can't iterate over a {kind_of(value)}")
