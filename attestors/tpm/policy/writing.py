"""A policy's text: HCL as a person would have written it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from operations.quoting import quote

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Comment:
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """`name = value`; a list on one line."""

    name: str
    value: str | bool | Sequence[str]


@dataclass(frozen=True, slots=True)
class Line:
    """A list with each value on a line of its own, with a comment where there is one."""

    name: str
    values: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Block:
    head: str
    nodes: Sequence[Node]


Node: TypeAlias = Comment | Rule | Line | Block


def text(nodes: Sequence[Node]) -> str:
    return "".join(f"{line}\n" for line in _lines(nodes, ""))


def quoted(value: str) -> str:
    """A text in double quotes. A `${`, in which HCL would not look for the end of the text, is broken up."""
    return quote(value).replace("${", "$\\x7b")


def _lines(nodes: Sequence[Node], margin: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Comment):
            wrapped = textwrap.wrap(_printable(node.text), WIDTH - len(margin))
            yield from (f"{margin}# {line}" for line in wrapped)
        elif isinstance(node, Rule):
            yield f"{margin}{node.name} = {_value(node.value)}"
        elif isinstance(node, Line):
            yield f"{margin}{node.name} = ["
            for value, about in node.values:
                yield f"{margin}  {quoted(value)}," + (f"  # {_printable(about)}" if about else "")
            yield f"{margin}]"
        else:
            yield f"{margin}{node.head} {{"
            yield from _lines(node.nodes, margin + "  ")
            yield f"{margin}}}"


def _value(value: str | bool | Sequence[str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    return f"[{', '.join(quoted(each) for each in value)}]"


def _printable(text: str) -> str:
    """A name that a node chose must not end its comment and go on as a rule."""
    return quote(text)[1:-1] if not text.isprintable() else text
