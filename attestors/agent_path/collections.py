"""sprig's functions of lists and maps, and those that choose between values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import cast

from attestors.agent_path.values import Value, as_list, as_mapping, equal, is_true, kind_of, text_of
from operations.errors import InvalidArgument
from operations.quoting import quote

List = list[Value]
Map = Mapping[str, Value]


def default(fallback: Value, *given: Value) -> Value:
    return given[0] if given and is_true(given[0]) else fallback


def empty(value: Value) -> bool:
    return not is_true(value)


def coalesce(*values: Value) -> Value:
    return next((value for value in values if is_true(value)), None)


def all_(*values: Value) -> bool:
    return all(map(is_true, values))


def any_(*values: Value) -> bool:
    return any(map(is_true, values))


def ternary(yes: Value, no: Value, condition: bool) -> Value:
    return yes if condition else no


def list_(*values: Value) -> List:
    return list(values)


def dict_(*pairs: Value) -> Map:
    """Keys and values by turns; a last key alone has an empty text."""
    made: dict[str, Value] = {}
    for position in range(0, len(pairs), 2):
        made[text_of(pairs[position])] = pairs[position + 1] if position + 1 < len(pairs) else ""
    return made


def get(mapping: Map, key: str) -> Value:
    return mapping.get(key, "")


def set_(mapping: Map, key: str, value: Value) -> Map:
    """Changes the map itself, as everywhere in Go."""
    _mutable(mapping)[key] = value
    return mapping


def unset(mapping: Map, key: str) -> Map:
    _mutable(mapping).pop(key, None)
    return mapping


def has_key(mapping: Map, key: str) -> bool:
    return key in mapping


def pluck(key: str, *mappings: Map) -> List:
    return [mapping[key] for mapping in mappings if key in mapping]


def keys(*mappings: Map) -> List:
    """In the maps' own order; Go's is random."""
    return [key for mapping in mappings for key in mapping]


def pick(mapping: Map, *wanted: str) -> Map:
    return {key: mapping[key] for key in wanted if key in mapping}


def omit(mapping: Map, *unwanted: str) -> Map:
    return {key: value for key, value in mapping.items() if key not in unwanted}


def merge(into: Map, *others: Map) -> Map:
    """What the first has stays, unless it is empty; maps inside are merged too."""
    return _merge(into, others, lambda mine: not is_true(mine))


def merge_overwrite(into: Map, *others: Map) -> Map:
    """The last one wins; maps inside are merged too."""
    return _merge(into, others, lambda _mine: True)


def _merge(into: Map, others: Iterable[Map], loses: Callable[[Value], bool]) -> Map:
    target = _mutable(into)
    for other in others:
        for key, theirs in other.items():
            mine = target.get(key)
            inner, outer = as_mapping(mine), as_mapping(theirs)
            if inner is not None and outer is not None:
                target[key] = _merge(dict(inner), (outer,), loses)
            elif key not in target or loses(mine):
                target[key] = theirs
    return into


def values(mapping: Map) -> List:
    return list(mapping.values())


def dig(*arguments: Value) -> Value:
    """Keys, a default and a map: the value under the keys, one inside the other."""
    *path, fallback, found = arguments
    for position, key in enumerate(path):
        mapping = as_mapping(found)
        if mapping is None or not isinstance(key, str):
            place = "the last argument" if position == 0 else quote(str(path[position - 1]))
            raise InvalidArgument(f"dig: keys are strings, and {place} has to be a map, not a {kind_of(found)}")
        if key not in mapping:
            return fallback
        found = mapping[key]
    return found


def concat(*lists: List) -> List:
    return [item for items in lists for item in items]


def append(items: List, value: Value) -> List:
    return [*items, value]


def prepend(items: List, value: Value) -> List:
    return [value, *items]


def first(items: List) -> Value:
    return items[0] if items else None


def last(items: List) -> Value:
    return items[-1] if items else None


def rest(items: List) -> Value:
    return items[1:]


def initial(items: List) -> Value:
    return items[:-1]


def reverse(items: List) -> List:
    return items[::-1]


def uniq(items: List) -> List:
    found: List = []
    for item in items:
        if not _is_in(item, found):
            found.append(item)
    return found


def compact(items: List) -> List:
    return [item for item in items if is_true(item)]


def without(items: List, *unwanted: Value) -> List:
    return [item for item in items if not _is_in(item, unwanted)]


def has(needle: Value, haystack: Value) -> bool:
    if haystack is None:
        return False
    items = as_list(haystack)
    if items is None:
        raise InvalidArgument(f"has: expected a list, found a {kind_of(haystack)}")
    return _is_in(needle, items)


def slice_(items: List, *bounds: int) -> Value:
    """From the first bound up to the second."""
    if not items:
        return None
    begin, end = bounds[0] if bounds else 0, bounds[1] if len(bounds) > 1 else len(items)
    if not 0 <= begin <= end <= len(items):
        raise InvalidArgument(f"slice: [{begin}:{end}] is out of range for {len(items)} elements")
    return items[begin:end]


def chunk(size: int, items: List) -> List:
    if size <= 0:
        raise InvalidArgument("chunk: the size must be greater than 0")
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _is_in(value: Value, items: Iterable[Value]) -> bool:
    return any(equal(value, item) for item in items)


def _mutable(mapping: Map) -> MutableMapping[str, Value]:
    if not isinstance(mapping, dict):
        raise InvalidArgument("this map cannot be changed")
    return cast("MutableMapping[str, Value]", mapping)
