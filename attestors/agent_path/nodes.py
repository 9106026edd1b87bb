"""What a template consists of once it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attestors.agent_path.functions import Function
from attestors.agent_path.values import Value


@dataclass(frozen=True, slots=True)
class Literal:
    value: Value


@dataclass(frozen=True, slots=True)
class Dot:
    """What the template is about at this place."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`name` has its `$`, and is `$` alone for what the whole template is about."""

    name: str


@dataclass(frozen=True, slots=True)
class Field:
    of: Expression
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    function: Function
    arguments: tuple[Expression, ...]


Expression = Literal | Dot | Variable | Field | Call


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ … }}`. `variable` gets the value instead of the output; `declares` says that it is a new one."""

    value: Expression
    variable: str = ""
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """`keyword` is if, with or range. `variables` are those that it declares: for range, an index and a value."""

    keyword: str
    value: Expression
    variables: tuple[str, ...]
    body: Sequence[Node]
    otherwise: Sequence[Node]


Node = Text | Action | Branch
