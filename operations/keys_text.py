"""How the `keys` commands of server and agent word what they are told of keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from operations import times
from operations.errors import Refused
from operations.quoting import quote

if TYPE_CHECKING:
    from generated.spire.keys.v1 import keys_pb2 as api

_WIDTH: Final = 16
_NOT_KNOWN: Final = "not known"


def print_keys(response: api.ListKeysResponse) -> None:
    """Every key with all that is known of it, and what is not known."""
    count = len(response.keys)
    print(f"Found {count} {'key' if count == 1 else 'keys'} in key manager {quote(response.key_manager)}")
    for sentence in response.not_known:
        print(sentence[:1].upper() + sentence[1:] + ".")
    for key in response.keys:
        print()
        _print_key(key, signatures_known=not response.not_known)


def print_proofs(response: api.VerifyKeysResponse) -> None:
    for number, proof in enumerate(response.proofs):
        if number:
            print()
        print(f"Key {proof.key.id}: {'proven' if proof.stands else 'NOT PROVEN'}")
        _row("Handle", proof.key.handle or _NOT_KNOWN)
        for check in proof.checks:
            print(f"  {'passed' if check.passed else 'FAILED'}  {check.name}: {check.found}")
        if proof.HasField("attestation"):
            held = proof.attestation
            size, certificates = len(held.statement), len(held.certificates)
            print(f"  device's own attestation: {held.format}, {size} bytes, {certificates} certificates; -output json")


def require_all(response: api.VerifyKeysResponse) -> None:
    """Raises Refused unless every proof stands, and there is one."""
    failed = [proof.key.id for proof in response.proofs if not proof.stands]
    if failed or not response.proofs:
        count = len(response.proofs)
        raise Refused(f"{len(failed)} of {count} {'key' if count == 1 else 'keys'} not proven: {', '.join(failed)}")


def print_disposed(response: api.DisposeKeyResponse) -> None:
    print(f"Key {response.key.id} ({response.key.handle}) was destroyed.")


def _print_key(key: api.Key, *, signatures_known: bool) -> None:
    _row("Key ID", key.id)
    _row("Handle", key.handle)
    _row("Type", key.type or "no signing key")
    _row("Label", key.label or _NOT_KNOWN)
    _row("Token", key.token or _NOT_KNOWN)
    _row("Attributes", ", ".join(_attributes(key)) or _NOT_KNOWN)
    _row("Created", times.rfc3339(key.created_at) if key.HasField("created_at") else _NOT_KNOWN)
    _row("Used by", ", ".join(_uses(key.used_by)) or ("nobody; retired" if key.HasField("retired_at") else "nobody"))
    unsigned = "none since the start" if signatures_known else _NOT_KNOWN
    _row("Last signature", times.rfc3339(key.last_signature_at) if key.HasField("last_signature_at") else unsigned)
    if key.HasField("retired_at"):
        _row("Retired", times.rfc3339(key.retired_at))
        _row("Disposed of", times.rfc3339(key.dispose_at) if key.HasField("dispose_at") else "by nobody but `dispose`")


def _row(name: str, value: str) -> None:
    print(f"  {name + ':':{_WIDTH}}{value}")


def _attributes(key: api.Key) -> Iterator[str]:
    return (name if key.attributes[name] else f"not {name}" for name in sorted(key.attributes))


def _uses(uses: Sequence[api.Use]) -> Iterator[str]:
    return (f"{use.status} {use.purpose} {use.name}".rstrip() for use in uses)
