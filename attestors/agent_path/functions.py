"""The functions of templates, by name, with what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from attestors.agent_path import builtins, collections, paths, regexes, texts, urls
from attestors.agent_path.values import Value, as_list, as_mapping, kind_of
from operations.errors import InvalidArgument


class Kind(Enum):
    """What an argument has to be."""

    ANY = "value"
    TEXT = "string"
    NUMBER = "int"
    TRUTH = "bool"
    LIST = "list"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class Function:
    """`kinds` are those of the arguments; with `more` any number may follow, each of that kind.

    `takes_pattern` says that the first argument is a regular expression.
    """

    implementation: Callable[..., Value]
    kinds: tuple[Kind, ...]
    more: Kind | None = None
    takes_pattern: bool = False

    def require_number(self, name: str, number: int) -> None:
        """Raises InvalidArgument for too few or too many arguments."""
        least = len(self.kinds)
        if number < least or (self.more is None and number > least):
            wanted = f"at least {least}" if self.more is not None else str(least)
            raise InvalidArgument(f"wrong number of args for {name}: want {wanted} got {number}")

    def call(self, name: str, arguments: Sequence[Value]) -> Value:
        """Raises InvalidArgument."""
        more = () if self.more is None else (self.more,) * (len(arguments) - len(self.kinds))
        given = [_checked(name, kind, value) for kind, value in zip((*self.kinds, *more), arguments, strict=True)]
        return self.implementation(*given)


def _checked(name: str, kind: Kind, value: Value) -> Value:
    """The argument as its function has it. Raises InvalidArgument."""
    match kind:
        case Kind.ANY:
            return value
        case Kind.TEXT if isinstance(value, str):
            return value
        case Kind.NUMBER if isinstance(value, int) and not isinstance(value, bool):
            return value
        case Kind.TRUTH if isinstance(value, bool):
            return value
        case Kind.LIST if (items := as_list(value)) is not None:
            return items
        case Kind.MAP if (mapping := as_mapping(value)) is not None:
            return mapping
        case _:
            raise InvalidArgument(f"{name}: expected a {kind.value}, found a {kind_of(value)}")


_A, _T, _N, _B, _L, _M = Kind.ANY, Kind.TEXT, Kind.NUMBER, Kind.TRUTH, Kind.LIST, Kind.MAP


def _fail(message: str) -> Value:
    raise InvalidArgument(message)


_BUILTINS: Mapping[str, Function] = {
    # The evaluation itself does these two, which stop early.
    "and": Function(_fail, (_A,), _A),
    "or": Function(_fail, (_A,), _A),
    "not": Function(builtins.negation, (_A,)),
    "eq": Function(builtins.equals, (_A, _A), _A),
    "ne": Function(builtins.differs, (_A, _A)),
    "lt": Function(builtins.less, (_A, _A)),
    "le": Function(builtins.less_or_equal, (_A, _A)),
    "gt": Function(builtins.greater, (_A, _A)),
    "ge": Function(builtins.greater_or_equal, (_A, _A)),
    "len": Function(builtins.length, (_A,)),
    "index": Function(builtins.index, (_A,), _A),
    "print": Function(builtins.print_, (), _A),
    "println": Function(builtins.println, (), _A),
    "printf": Function(builtins.printf, (_T,), _A),
    "urlquery": Function(urls.query, (), _A),
}

_TEXTS: Mapping[str, Function] = {
    "abbrev": Function(texts.abbrev, (_N, _T)),
    "abbrevboth": Function(texts.abbrev_both, (_N, _N, _T)),
    "trunc": Function(texts.trunc, (_N, _T)),
    "trim": Function(texts.trim, (_T,)),
    "upper": Function(texts.upper, (_T,)),
    "lower": Function(texts.lower, (_T,)),
    "title": Function(texts.title, (_T,)),
    "untitle": Function(texts.untitle, (_T,)),
    "substr": Function(texts.substr, (_N, _N, _T)),
    "repeat": Function(texts.repeat, (_N, _T)),
    "trimAll": Function(texts.trim_all, (_T, _T)),
    "trimSuffix": Function(texts.trim_suffix, (_T, _T)),
    "trimPrefix": Function(texts.trim_prefix, (_T, _T)),
    "nospace": Function(texts.without_space, (_T,)),
    "initials": Function(texts.initials, (_T,)),
    "swapcase": Function(texts.swap_case, (_T,)),
    "snakecase": Function(texts.snake_case, (_T,)),
    "camelcase": Function(texts.camel_case, (_T,)),
    "kebabcase": Function(texts.kebab_case, (_T,)),
    "wrap": Function(texts.wrap, (_N, _T)),
    "wrapWith": Function(texts.wrap_with, (_N, _T, _T)),
    "contains": Function(texts.contains, (_T, _T)),
    "hasPrefix": Function(texts.has_prefix, (_T, _T)),
    "hasSuffix": Function(texts.has_suffix, (_T, _T)),
    "quote": Function(texts.quote_all, (), _A),
    "squote": Function(texts.quote_singly, (), _A),
    "cat": Function(texts.cat, (), _A),
    "indent": Function(texts.indent, (_N, _T)),
    "nindent": Function(texts.new_line_indent, (_N, _T)),
    "replace": Function(texts.replace, (_T, _T, _T)),
    "plural": Function(texts.plural, (_T, _T, _N)),
    "sha1sum": Function(texts.sha1_sum, (_T,)),
    "sha256sum": Function(texts.sha256_sum, (_T,)),
    "adler32sum": Function(texts.adler32_sum, (_T,)),
    "b64enc": Function(texts.base64_encode, (_T,)),
    "b64dec": Function(texts.base64_decode, (_T,)),
    "b32enc": Function(texts.base32_encode, (_T,)),
    "b32dec": Function(texts.base32_decode, (_T,)),
    "toString": Function(texts.to_string, (_A,)),
    "uuidv4": Function(texts.uuid_v4, ()),
    "fail": Function(_fail, (_T,)),
    "seq": Function(texts.sequence, (), _N),
    "splitList": Function(texts.split_list, (_T, _T)),
    "toStrings": Function(texts.to_strings, (_A,)),
    "join": Function(texts.join, (_T, _A)),
    "sortAlpha": Function(texts.sort_alpha, (_A,)),
    "base": Function(paths.base, (_T,)),
    "dir": Function(paths.folder, (_T,)),
    "clean": Function(paths.clean, (_T,)),
    "ext": Function(paths.extension, (_T,)),
    "isAbs": Function(paths.is_absolute, (_T,)),
    "urlParse": Function(urls.parse, (_T,)),
    "urlJoin": Function(urls.join, (_M,)),
}

_COLLECTIONS: Mapping[str, Function] = {
    "default": Function(collections.default, (_A,), _A),
    "empty": Function(collections.empty, (_A,)),
    "coalesce": Function(collections.coalesce, (), _A),
    "all": Function(collections.all_, (), _A),
    "any": Function(collections.any_, (), _A),
    "ternary": Function(collections.ternary, (_A, _A, _B)),
    "tuple": Function(collections.list_, (), _A),
    "list": Function(collections.list_, (), _A),
    "dict": Function(collections.dict_, (), _A),
    "get": Function(collections.get, (_M, _T)),
    "set": Function(collections.set_, (_M, _T, _A)),
    "unset": Function(collections.unset, (_M, _T)),
    "hasKey": Function(collections.has_key, (_M, _T)),
    "pluck": Function(collections.pluck, (_T,), _M),
    "keys": Function(collections.keys, (), _M),
    "pick": Function(collections.pick, (_M,), _T),
    "omit": Function(collections.omit, (_M,), _T),
    "merge": Function(collections.merge, (_M,), _M),
    "mergeOverwrite": Function(collections.merge_overwrite, (_M,), _M),
    "values": Function(collections.values, (_M,)),
    "dig": Function(collections.dig, (_A, _A, _A), _A),
    "concat": Function(collections.concat, (), _L),
    "append": Function(collections.append, (_L, _A)),
    "push": Function(collections.append, (_L, _A)),
    "prepend": Function(collections.prepend, (_L, _A)),
    "first": Function(collections.first, (_L,)),
    "rest": Function(collections.rest, (_L,)),
    "last": Function(collections.last, (_L,)),
    "initial": Function(collections.initial, (_L,)),
    "reverse": Function(collections.reverse, (_L,)),
    "uniq": Function(collections.uniq, (_L,)),
    "compact": Function(collections.compact, (_L,)),
    "without": Function(collections.without, (_L,), _A),
    "has": Function(collections.has, (_A, _A)),
    "slice": Function(collections.slice_, (_L,), _N),
    "chunk": Function(collections.chunk, (_N, _L)),
}

_REGEXES: Mapping[str, Function] = {
    "regexMatch": Function(regexes.match, (_T, _T), takes_pattern=True),
    "regexFind": Function(regexes.find, (_T, _T), takes_pattern=True),
    "regexFindAll": Function(regexes.find_all, (_T, _T, _N), takes_pattern=True),
    "regexReplaceAll": Function(regexes.replace_all, (_T, _T, _T), takes_pattern=True),
    "regexReplaceAllLiteral": Function(regexes.replace_all_literal, (_T, _T, _T), takes_pattern=True),
    "regexSplit": Function(regexes.split, (_T, _T, _N), takes_pattern=True),
}

_WITH_MUST = (
    *("append", "chunk", "compact", "first", "has", "initial", "last", "merge", "mergeOverwrite", "prepend", "push"),
    *("rest", "reverse", "slice", "uniq", "without", *_REGEXES),
)
"""Functions that have a second name with `must`. In Go these return their errors and the others panic."""

_PLAIN: Mapping[str, Function] = {**_BUILTINS, **_TEXTS, **_COLLECTIONS, **_REGEXES}

FUNCTIONS: Mapping[str, Function] = {
    **_PLAIN,
    **{f"must{name[0].upper()}{name[1:]}": _PLAIN[name] for name in _WITH_MUST},
    "regexQuoteMeta": Function(regexes.quote_meta, (_T,)),
}
"""Those of text/template that paths can use, and all of sprig's that SPIRE allows."""
