"""The messages of x509pop, byte for byte, and the proof that a key is held."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.x509pop import proof
from attestors.x509pop.messages import AttestationData, Challenge, EcdsaSignature, Nonce, Response, decode, encode
from operations.errors import InvalidArgument, Refused, Unsupported
from tests.simulators.nodes import ec_key, rsa_key

# Written by SPIRE 1.16's own x509pop package: a challenge and its response for a key of each kind.
VECTORS: list[dict[str, str]] = json.loads((Path(__file__).parent / "x509pop_vectors.json").read_text())

CURVES = (ec.SECP224R1(), ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
KEYS: tuple[proof.PrivateKey, ...] = (rsa_key(), *map(ec_key, CURVES))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_messages_and_proofs_are_those_of_go(vector: dict[str, str]) -> None:
    challenge = decode(Challenge, vector["challenge"].encode())
    response = decode(Response, vector["response"].encode())
    proof.verify(serialization.load_pem_public_key(vector["public_key"].encode()), challenge, response)
    assert encode(challenge).decode() == vector["challenge"]
    assert encode(response).decode() == vector["response"]
    payload = decode(AttestationData, vector["payload"].encode())
    assert payload.certificates[1] == b"second"
    assert encode(payload).decode() == vector["payload"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{type(key).__name__}-{key.key_size}")
def test_what_one_half_signs_the_other_verifies(key: proof.PrivateKey) -> None:
    challenge = proof.challenge_for(key.public_key())
    response = proof.respond(key, decode(Challenge, encode(challenge)), proof.fresh_nonce())
    proof.verify(key.public_key(), challenge, decode(Response, encode(response)))
    with pytest.raises(Refused, match="signature verify failed"):
        proof.verify(key.public_key(), proof.challenge_for(key.public_key()), response)


def test_another_key() -> None:
    for key, other in ((KEYS[0], rsa_key()), (KEYS[2], ec_key())):
        challenge = proof.challenge_for(key.public_key())
        response = proof.respond(other, challenge, proof.fresh_nonce())
        with pytest.raises(Refused, match="signature verify failed"):
            proof.verify(key.public_key(), challenge, response)


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_nonces_of_another_length(length: int) -> None:
    """Otherwise one nonce could say a part of the other."""
    for key in (KEYS[0], KEYS[2]):
        challenge = proof.challenge_for(key.public_key())
        with pytest.raises(Refused, match="invalid response nonce"):
            proof.respond(key, challenge, bytes(length))
        name = "rsa_signature" if challenge.rsa_signature else "ecdsa_signature"
        with pytest.raises(Refused, match="invalid challenge nonce"):
            proof.respond(key, Challenge(**{name: Nonce(bytes(length))}), proof.fresh_nonce())
        response = proof.respond(key, challenge, proof.fresh_nonce())
        short = msgspec.structs.replace(getattr(response, name), nonce=bytes(length))
        with pytest.raises(Refused, match="invalid response nonce"):
            proof.verify(key.public_key(), challenge, Response(**{name: short}))


def test_proofs_of_the_wrong_kind() -> None:
    rsa, ecdsa = KEYS[0], KEYS[2]
    for_rsa, for_ecdsa = proof.challenge_for(rsa.public_key()), proof.challenge_for(ecdsa.public_key())
    with pytest.raises(Refused, match="expecting RSA challenge"):
        proof.respond(rsa, for_ecdsa, proof.fresh_nonce())
    with pytest.raises(Refused, match="expecting ECDSA challenge"):
        proof.respond(ecdsa, for_rsa, proof.fresh_nonce())
    with pytest.raises(Refused, match="expecting RSA response"):
        proof.verify(rsa.public_key(), for_rsa, proof.respond(ecdsa, for_ecdsa, proof.fresh_nonce()))
    with pytest.raises(Refused, match="expecting ECDSA response"):
        proof.verify(ecdsa.public_key(), for_ecdsa, proof.respond(rsa, for_rsa, proof.fresh_nonce()))
    with pytest.raises(Unsupported, match="unsupported public key type"):
        proof.challenge_for("a key")
    with pytest.raises(Refused, match="unsupported public key type"):
        proof.verify("a key", for_rsa, Response())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=40))
def test_no_numbers_at_random_are_a_signature(r: bytes, s: bytes, nonce: bytes) -> None:
    public_key = KEYS[2].public_key()
    challenge = proof.challenge_for(public_key)
    for own in (nonce, bytes(32)):
        with pytest.raises(Refused):
            proof.verify(public_key, challenge, Response(ecdsa_signature=EcdsaSignature(own, r, s)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["AAAA", "AAA", "/+=="]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["certificates", "rsa_signature", "ecdsa_signature", "nonce", "signature", "r", "s", "x"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_document_is_a_message_or_refused(document: bytes) -> None:
    for kind in (AttestationData, Challenge, Response):
        try:
            decode(kind, document)
        except InvalidArgument:
            continue


def test_documents_nested_without_end() -> None:
    for document in (b"[" * 100_000, b'{"x":' * 100_000):
        with pytest.raises(InvalidArgument):
            decode(Challenge, document)
