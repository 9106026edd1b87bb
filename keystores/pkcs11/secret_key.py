"""The program's part of sealing: which key of the token the secrets come from, and when another one is made."""

from __future__ import annotations

import secrets

from keystores.errors import PermanentlyUnusable, Refused, Unsupported
from keystores.pkcs11 import mapping
from keystores.pkcs11.inventory import SEALING
from keystores.pkcs11.mapping import Mapping
from keystores.pkcs11.protocol import Seal, Sealed
from keystores.pkcs11.tokens import Tokens
from operations.logs import Logger

CKA_ID_SIZE = 20


async def sealed(tokens: Tokens, known: Mapping, label: str, log: Logger) -> Sealed:
    """The label's secret, by the key that keys_path names or, without one, that is found in the token or made.

    Raises TemporarilyUnavailable and PermanentlyUnusable.
    """
    if known.sealing_key is not None:
        try:
            return await _sealed(tokens, known, label, known.sealing_key)
        except PermanentlyUnusable as error:
            log.warning("The key for sealing cannot be used; another one is looked for or made", error=error)
    # In a token that has the keys which sign: one that shows nothing is not asked to make another key.
    return await _sealed(tokens, known, label, next((key.cka_id for key in known.keys.values()), None))


async def _sealed(tokens: Tokens, known: Mapping, label: str, witness: str | None) -> Sealed:
    wanted = Seal(
        mapping.label(known.namespace, SEALING),
        secrets.token_bytes(CKA_ID_SIZE),
        label.encode(),
        None if witness is None else bytes.fromhex(witness),
    )
    try:
        return await tokens.seal(wanted)
    except (Refused, Unsupported) as error:
        raise PermanentlyUnusable(str(error)) from error
