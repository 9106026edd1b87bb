"""Proof that the key of a certificate is held: a signature of two nonces, the server's and the agent's own.

What is signed is SHA-256(server's nonce || agent's nonce). Pure: nonces are given, except where a challenge begins.
"""

from __future__ import annotations

import secrets
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from attestors.x509pop.messages import Challenge, EcdsaSignature, Nonce, Response, RsaSignature
from operations.errors import Refused, Unsupported

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

NONCE_LENGTH = 32

_DIGEST = Prehashed(hashes.SHA256())
_SIGNING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
_VERIFYING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)


def fresh_nonce() -> bytes:
    return secrets.token_bytes(NONCE_LENGTH)


def challenge_for(public_key: object) -> Challenge:
    """A challenge with a fresh nonce. Raises Unsupported for a key that is neither RSA nor ECDSA."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return Challenge(rsa_signature=Nonce(fresh_nonce()))
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return Challenge(ecdsa_signature=Nonce(fresh_nonce()))
    raise Unsupported(f"unsupported public key type {type(public_key).__name__}")


def respond(key: PrivateKey, challenge: Challenge, nonce: bytes) -> Response:
    """Sign the challenge's nonce together with one's own. Raises Refused for a challenge that does not fit the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        if challenge.rsa_signature is None:
            raise Refused("expecting RSA challenge")
        digest = _combined(challenge.rsa_signature.nonce, nonce)
        return Response(rsa_signature=RsaSignature(nonce, key.sign(digest, _SIGNING, _DIGEST)))
    if challenge.ecdsa_signature is None:
        raise Refused("expecting ECDSA challenge")
    digest = _combined(challenge.ecdsa_signature.nonce, nonce)
    r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_DIGEST)))
    return Response(ecdsa_signature=EcdsaSignature(nonce, _unsigned(r), _unsigned(s)))


def verify(public_key: object, challenge: Challenge, response: Response) -> None:
    """Raise Refused unless the response proves that its sender holds the key."""
    if isinstance(public_key, rsa.RSAPublicKey):
        if challenge.rsa_signature is None:
            raise Refused("expecting RSA challenge")
        if response.rsa_signature is None:
            raise Refused("expecting RSA response")
        _verify_rsa(public_key, challenge.rsa_signature, response.rsa_signature)
    elif isinstance(public_key, ec.EllipticCurvePublicKey):
        if challenge.ecdsa_signature is None:
            raise Refused("expecting ECDSA challenge")
        if response.ecdsa_signature is None:
            raise Refused("expecting ECDSA response")
        _verify_ecdsa(public_key, challenge.ecdsa_signature, response.ecdsa_signature)
    else:
        raise Refused(f"unsupported public key type {type(public_key).__name__}")


def _verify_rsa(key: rsa.RSAPublicKey, challenge: Nonce, response: RsaSignature) -> None:
    digest = _combined(challenge.nonce, response.nonce)
    try:
        key.verify(response.signature, digest, _VERIFYING, _DIGEST)
    except InvalidSignature as error:
        raise Refused("RSA signature verify failed") from error


def _verify_ecdsa(key: ec.EllipticCurvePublicKey, challenge: Nonce, response: EcdsaSignature) -> None:
    digest = _combined(challenge.nonce, response.nonce)
    # No number of a signature is longer than the key (FIPS 186-5, 6.4); a short one costs nothing to refuse.
    longest = (key.key_size + 7) // 8
    r, s = response.r.lstrip(b"\0"), response.s.lstrip(b"\0")
    if max(len(r), len(s)) > longest:
        raise Refused("ECDSA signature verify failed")
    try:
        key.verify(encode_dss_signature(int.from_bytes(r), int.from_bytes(s)), digest, ec.ECDSA(_DIGEST))
    except InvalidSignature as error:
        raise Refused("ECDSA signature verify failed") from error


def _combined(challenge: bytes, response: bytes) -> bytes:
    if len(challenge) != NONCE_LENGTH:
        raise Refused("invalid challenge nonce")
    if len(response) != NONCE_LENGTH:
        raise Refused("invalid response nonce")
    return sha256(challenge + response).digest()


def _unsigned(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)
