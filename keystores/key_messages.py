"""Keys and their proofs as messages of spire.keys.v1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from generated.spire.keys.v1 import keys_pb2 as api
from plugins.keyinventory import KeyRecord, Proof

if TYPE_CHECKING:
    from keystores.inspection import Use


def key(record: KeyRecord, used_by: Sequence[Use]) -> api.Key:
    return api.Key(
        handle=record.handle,
        id=record.id,
        type=record.key_type.value if record.key_type is not None else "",
        public_key=record.public_key or b"",
        label=record.label,
        token=record.token,
        attributes=dict(record.attributes),
        created_at=record.created_at,
        retired_at=record.retired_at,
        dispose_at=record.dispose_at,
        last_signature_at=record.last_signature_at,
        used_by=[api.Use(purpose=use.purpose, status=use.status, name=use.name) for use in used_by],
    )


def proof(found: Proof, used_by: Sequence[Use]) -> api.Proof:
    message = api.Proof(
        key=key(found.record, used_by),
        stands=found.stands,
        checks=[api.Check(name=each.name, passed=each.passed, found=each.found) for each in found.checks],
    )
    if found.attestation is not None:
        message.attestation.format = found.attestation.format
        message.attestation.statement = found.attestation.statement
        message.attestation.signature = found.attestation.signature
        message.attestation.certificates.extend(found.attestation.certificates)
    return message
