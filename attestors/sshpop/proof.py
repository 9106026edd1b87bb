"""Proof that a host's key is held: a signature of two nonces, the server's and the agent's own.

What is signed is SHA-256(server's nonce || agent's nonce). Pure: nonces are given.
"""

from __future__ import annotations

import secrets
from hashlib import sha256

from attestors.sshpop import keys
from attestors.sshpop.keys import PrivateKey, PublicKey
from attestors.sshpop.messages import Challenge, Response, Signature
from operations.errors import InvalidArgument, Refused

NONCE_LENGTH = 32


def fresh_nonce() -> bytes:
    return secrets.token_bytes(NONCE_LENGTH)


def respond(key: PrivateKey, challenge: Challenge, nonce: bytes) -> Response:
    """Raises InvalidArgument for a nonce of another length."""
    signature = keys.sign(key, combined(challenge.nonce, nonce))
    return Response(nonce, Signature(signature.format, signature.blob))


def verify(key: PublicKey, data: bytes, response: Response) -> None:
    """`data` is of `combined`. Raises Refused unless the response's signature is the key's."""
    given = response.signature
    if given is None:
        raise Refused("no signature in response")
    keys.verify(key, data, keys.Signature(given.format, given.blob or b"", given.rest or b""))


def combined(challenge: bytes | None, response: bytes | None) -> bytes:
    """Raises InvalidArgument for a nonce of another length."""
    for whose, nonce in (("challenge", challenge), ("response", response)):
        if len(nonce or b"") != NONCE_LENGTH:
            raise InvalidArgument(f"invalid {whose} nonce size")
    return sha256((challenge or b"") + (response or b"")).digest()
