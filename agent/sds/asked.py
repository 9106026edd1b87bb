"""What a client asks for, within bounds, and the secrets that answer it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from google.protobuf import struct_pb2

from agent.config.file import Sds
from agent.sds.secrets import Resource, Secrets, Validator
from generated.envoy.config.core.v3 import base_pb2
from operations.quoting import quote
from transport.status import Code, RpcError

MOST_NAMES: Final = 1000
LONGEST_NAMES: Final = 64 << 10
"""Characters of all names that one stream asks for. Envoy asks for one name on a stream, and no name means all."""

WILDCARD: Final = "*"
EVERYTHING: Final = frozenset((WILDCARD,))
_LONGEST_TYPE: Final = 256
_OVERRIDE: Final = "disable_spiffe_cert_validation"
_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_SPIFFE_SINCE: Final = (1, 18)


def checked_names(names: Collection[str]) -> frozenset[str]:
    """Without empty ones. Raises RpcError for more than a stream may ask for."""
    if len(names) > MOST_NAMES or sum(map(len, names)) > LONGEST_NAMES:
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f"a stream may ask for {MOST_NAMES} names with {LONGEST_NAMES} characters in all: "
            "name none to get all secrets, or use several streams",
        )
    return frozenset(name for name in names if name)


def checked_type(type_url: str) -> str:
    """Any is taken, and is what the answer says, as in SPIRE. Raises RpcError for what can be none."""
    if len(type_url) > _LONGEST_TYPE:
        raise RpcError(Code.INVALID_ARGUMENT, f"type_url has {len(type_url)} characters: it names no type")
    return type_url


def validator_of(node: base_pb2.Node, settings: Sds) -> Validator:
    """The node's metadata wins over the settings, and its age over both."""
    disabled = settings.disable_spiffe_cert_validation
    if _OVERRIDE in node.metadata.fields:
        override = _boolean(node.metadata.fields[_OVERRIDE])
        disabled = disabled if override is None else override
    if node.user_agent_build_version.HasField("version"):
        version = node.user_agent_build_version.version
        if (version.major_number, version.minor_number) < _SPIFFE_SINCE:
            return Validator.ROOT_CA
    return Validator.ROOT_CA if disabled else Validator.SPIFFE


def _boolean(value: struct_pb2.Value) -> bool | None:
    """None for what says neither yes nor no."""
    if value.HasField("bool_value"):
        return value.bool_value
    text = value.string_value
    return None if text not in _TRUE | _FALSE else text in _TRUE


def select(names: frozenset[str], secrets: Secrets, validator: Validator) -> Sequence[Resource]:
    """The secrets of these names, or all by their own names when there are none.

    Each certificate and bundle answers to one name, its best: who asks for one by two is refused, as in SPIRE.
    Raises RpcError for a name that is none of the workload's.
    """
    if not names or names == EVERYTHING:
        return secrets.all(validator)
    offers = secrets.offers(validator)
    taken: dict[str, str] = {}
    for name in sorted(names & offers.keys(), key=lambda each: offers[each].rank):
        taken.setdefault(offers[name].subject, name)
    strange = names.difference(taken.values())
    if strange:
        listed = " ".join(map(quote, sorted(strange)))
        raise RpcError(Code.INVALID_ARGUMENT, f"workload is not authorized for the requested identities [{listed}]")
    return [offers[name].make() for name in taken.values()]
