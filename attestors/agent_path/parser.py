"""From words to nodes. What could never work is refused here: unknown functions, wrong numbers of arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from math import isinf

from attestors.agent_path import regexes
from attestors.agent_path.functions import FUNCTIONS, Function
from attestors.agent_path.lexer import Kind, RawAction, RawText, Token, lex
from attestors.agent_path.nodes import Action, Branch, Call, Dot, Expression, Field, Literal, Node, Text, Variable
from operations.errors import InvalidArgument
from operations.quoting import quote

_CONSTANTS = {"true": True, "false": False, "nil": None}
_BRANCHES = ("if", "with", "range")
_ABSENT = ("block", "define", "template", "break", "continue")
_MAX_DEPTH = 64
_MAX_WORDS = 256
_LARGEST = 2**63 - 1
_GO_TEXT = re.compile(r"""(?:[^\\]|\\(?:[abfnrtv\\'"]|x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}))*""")


def parse(text: str) -> Sequence[Node]:
    """Raises InvalidArgument."""
    parser = _Template(lex(text))
    nodes, ended_by = parser.nodes(("$",))
    if ended_by is not None:
        raise InvalidArgument(f"unexpected {{{{{ended_by[0]}}}}}")
    return nodes


class _Template:
    def __init__(self, raw: Iterator[RawText | RawAction]) -> None:
        self._raw = raw
        self._depth = 0

    def nodes(self, variables: tuple[str, ...]) -> tuple[Sequence[Node], tuple[str, _Action] | None]:
        """Up to the action that ends them, `end` or `else`, which comes back with its word; None at the text's end."""
        nodes: list[Node] = []
        for piece in self._raw:
            if isinstance(piece, RawText):
                if piece.text:
                    nodes.append(Text(piece.text))
                continue
            action = _Action(piece.tokens, variables)
            word = action.keyword()
            if word in ("end", "else"):
                return nodes, (word, action)
            if word in _BRANCHES:
                nodes.append(self._branch(word, action, variables))
                continue
            node = action.action()
            variables += (node.variable,) if node.declares else ()
            nodes.append(node)
        return nodes, None

    def _branch(self, keyword: str, action: _Action, variables: tuple[str, ...]) -> Branch:
        with self._deeper():
            declared, value = action.head(keyword)
            body, ended_by = self.nodes(variables + declared)
            otherwise: Sequence[Node] = ()
            if ended_by is not None and ended_by[0] == "else":
                otherwise, ended_by = self._otherwise(ended_by[1], variables + declared)
            if ended_by is None:
                raise InvalidArgument(f"{{{{{keyword}}}}} has no {{{{end}}}}")
            ended_by[1].nothing_more()
            return Branch(keyword, value, declared, body, otherwise)

    def _otherwise(
        self, action: _Action, variables: tuple[str, ...]
    ) -> tuple[Sequence[Node], tuple[str, _Action] | None]:
        """`else` by itself, or with a further condition, which shares the end of the first."""
        word = action.keyword()
        if word in ("if", "with"):
            return (self._branch(word, _Action(action.left(), variables), variables),), ("end", _Action((), ()))
        action.nothing_more()
        nodes, ended_by = self.nodes(variables)
        if ended_by is not None and ended_by[0] == "else":
            raise InvalidArgument("expected {{end}}; found {{else}}")
        return nodes, ended_by

    @contextmanager
    def _deeper(self) -> Generator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InvalidArgument(f"nested deeper than {_MAX_DEPTH} levels")
        yield
        self._depth -= 1


class _Action:
    """Reads the tokens of one action."""

    def __init__(self, tokens: Sequence[Token], variables: tuple[str, ...]) -> None:
        if len(tokens) > _MAX_WORDS:
            raise InvalidArgument(f"an action of more than {_MAX_WORDS} words")
        self._tokens = list(tokens)
        self._variables = variables
        self._depth = 0
        self._skip_space()

    def left(self) -> Sequence[Token]:
        return tuple(self._tokens)

    def keyword(self) -> str:
        """The word that the action begins with, taken, if it is one of the language's own; else nothing."""
        word = self._tokens[0].text if self._tokens and self._tokens[0].kind is Kind.WORD else ""
        if word in _ABSENT and word not in FUNCTIONS:
            raise InvalidArgument(f"{{{{{word}}}}} is not available in agent path templates")
        if word in ("end", "else", *_BRANCHES):
            self._take()
            self._skip_space()
            return word
        return ""

    def nothing_more(self) -> None:
        if self._tokens:
            raise InvalidArgument(f"unexpected {quote(self._tokens[0].text)} in action")

    def head(self, keyword: str) -> tuple[tuple[str, ...], Expression]:
        """What stands behind if, with or range: the variables declared, and the value."""
        names: list[str] = []
        if self._declares():
            names.append(self._take().text)
            self._skip_space()
            if self._sign(","):
                self._skip_space()
                if keyword != "range" or not self._tokens or self._tokens[0].kind is not Kind.VARIABLE:
                    raise InvalidArgument("only range declares two variables")
                names.append(self._take().text)
                self._skip_space()
            if not self._sign(":="):
                raise InvalidArgument("expected := behind the variable")
        value = self._pipeline()
        self.nothing_more()
        self._variables += tuple(names)
        return tuple(names), value

    def action(self) -> Action:
        variable, declares = "", False
        if self._declares():
            variable = self._take().text
            self._skip_space()
            declares = self._sign(":=")
            if not declares:
                self._expect("=")
                self._known(variable)
        value = self._pipeline()
        self.nothing_more()
        return Action(value, variable, declares)

    def _declares(self) -> bool:
        """Whether the action begins with a variable that is given a value."""
        if not self._tokens or self._tokens[0].kind is not Kind.VARIABLE:
            return False
        behind = next((token for token in self._tokens[1:] if token.kind is not Kind.SPACE), None)
        return behind is not None and behind.text in (":=", "=", ",")

    def _pipeline(self) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InvalidArgument(f"nested deeper than {_MAX_DEPTH} levels")
        self._skip_space()
        value = self._command(())
        while self._sign("|"):
            value = self._command((value,))
        self._depth -= 1
        return value

    def _command(self, piped: tuple[Expression, ...]) -> Expression:
        """A function with its arguments, of which the piped value is the last; or a value by itself."""
        self._skip_space()
        if not self._tokens or self._tokens[0].text in ("|", ")"):
            raise InvalidArgument("missing value for command")
        name = self._function_name()
        operands: list[Expression] = []
        if name is None:
            operands.append(self._operand())
        while self._at_space() and self._at_operand():
            operands.append(self._operand())
        self._skip_space()
        if name is not None:
            return _call(name, (*operands, *piped))
        if piped:
            raise InvalidArgument("non executable command in pipeline: only a function takes what comes before |")
        if len(operands) > 1:
            raise InvalidArgument("can't give argument to non-function")
        if operands[0] == Literal(None):
            raise InvalidArgument("nil is not a command")
        return operands[0]

    def _function_name(self) -> str | None:
        token = self._tokens[0]
        if token.kind is Kind.WORD and token.text not in _CONSTANTS:
            return self._take().text
        return None

    def _operand(self) -> Expression:
        value = self._term()
        while self._tokens and self._tokens[0].kind is Kind.FIELD:
            if isinstance(value, Literal):
                raise InvalidArgument(f"unexpected {quote(self._tokens[0].text)} behind a constant")
            value = Field(value, self._take().text[1:])
        return value

    def _term(self) -> Expression:
        token = self._take()
        match token.kind:
            case Kind.DOT:
                return Dot()
            case Kind.FIELD:
                return Field(Dot(), token.text[1:])
            case Kind.VARIABLE:
                self._known(token.text)
                return Variable(token.text)
            case Kind.WORD:
                return Literal(_CONSTANTS[token.text]) if token.text in _CONSTANTS else _call(token.text, ())
            case Kind.SIGN if token.text == "(":
                value = self._pipeline()
                self._expect(")")
                return value
            case Kind.STRING | Kind.RAW | Kind.CHARACTER | Kind.NUMBER:
                return Literal(_constant(token))
            case _:
                raise InvalidArgument(f"unexpected {quote(token.text)} in operand")

    def _known(self, variable: str) -> None:
        if variable not in self._variables:
            raise InvalidArgument(f"undefined variable {quote(variable)}")

    def _take(self) -> Token:
        return self._tokens.pop(0)

    def _skip_space(self) -> None:
        while self._tokens and self._tokens[0].kind is Kind.SPACE:
            self._tokens.pop(0)

    def _at_space(self) -> bool:
        return bool(self._tokens) and self._tokens[0].kind is Kind.SPACE

    def _at_operand(self) -> bool:
        self._skip_space()
        return bool(self._tokens) and self._tokens[0].text not in ("|", ")")

    def _sign(self, text: str) -> bool:
        found = bool(self._tokens) and self._tokens[0].kind is Kind.SIGN and self._tokens[0].text == text
        if found:
            self._take()
        return found

    def _expect(self, text: str) -> None:
        self._skip_space()
        if not self._sign(text):
            raise InvalidArgument(f"expected {quote(text)}")


def _call(name: str, arguments: tuple[Expression, ...]) -> Call:
    function: Function | None = FUNCTIONS.get(name)
    if function is None:
        raise InvalidArgument(f"function {quote(name)} not defined")
    function.require_number(name, len(arguments))
    if function.takes_pattern and isinstance(pattern := arguments[0], Literal) and isinstance(pattern.value, str):
        regexes.compiled(pattern.value)
    return Call(name, function, arguments)


def _constant(token: Token) -> object:
    """A literal of Go's, most of which Python reads in the same way."""
    text = token.text
    if token.kind is Kind.RAW:
        return text[1:-1].replace("\r", "")
    if token.kind is not Kind.NUMBER and not _GO_TEXT.fullmatch(text):
        raise InvalidArgument(f"bad constant {text}: unknown escape; `…` takes backslashes as they are")
    try:
        if token.kind is Kind.NUMBER and text.lstrip("+-")[:1] == "0" and text.lstrip("+-").isdigit():
            return int(text, 8)
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise InvalidArgument(f"bad constant {text}") from error
    if (isinstance(value, int) and abs(value) > _LARGEST) or (isinstance(value, float) and isinf(value)):
        raise InvalidArgument(f"bad constant {text}: too large a number")
    if token.kind is not Kind.CHARACTER:
        return value
    if not isinstance(value, str) or len(value) != 1:
        raise InvalidArgument(f"bad constant {text}")
    return ord(value)
