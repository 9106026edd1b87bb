from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keystores import public_keys
from keystores.errors import PermanentlyUnusable
from keystores.pkcs11 import encoding
from keystores.pkcs11.protocol import Mechanism, PublicParts
from plugins.keymanager import Hash, KeyType, Scheme

EC_TYPES = [KeyType.EC_P256, KeyType.EC_P384]


def name(key_type: KeyType) -> str:
    return key_type.value


@pytest.mark.parametrize("key_type", EC_TYPES, ids=name)
def test_a_point_is_read_by_its_length_raw_as_octet_string_or_as_bit_string(key_type: KeyType) -> None:
    public = ec.generate_private_key(public_keys.CURVES[key_type]()).public_key()
    raw = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    octets = bytes((0x04, len(raw))) + raw
    bits = bytes((0x03, len(raw) + 1, 0)) + raw
    for value in (raw, octets, bits):
        assert encoding.ec_public_key(value, key_type) == public_keys.to_der(public)


@pytest.mark.parametrize("key_type", EC_TYPES, ids=name)
@pytest.mark.parametrize("size", [0, 1, 64, 65, 66, 67, 68, 96, 97, 98, 99, 100])
def test_what_is_no_point_is_refused(key_type: KeyType, size: int) -> None:
    with pytest.raises(PermanentlyUnusable):
        encoding.ec_public_key(b"\x04" * size, key_type)


@pytest.mark.parametrize("key_type", EC_TYPES, ids=name)
@pytest.mark.parametrize("r", [1, 127, 128, 2**200, 2**255 + 1])
def test_signatures_become_der_whichever_way_the_token_gives_them(key_type: KeyType, r: int) -> None:
    size = encoding.COORDINATE_SIZE[key_type]
    s = r + 1
    der = encode_dss_signature(r, s)
    assert encoding.ecdsa_signature(r.to_bytes(size, "big") + s.to_bytes(size, "big"), key_type) == der
    assert encoding.ecdsa_signature(der, key_type) == der


@pytest.mark.parametrize("signature", [b"", b"\x00" * 63, b"\x30" * 65, b"\x30\x06\x02\x01\x01\x02\x01\x01\x00"])
def test_a_malformed_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(PermanentlyUnusable, match="neither"):
        encoding.ecdsa_signature(signature, KeyType.EC_P256)


def test_an_rsa_key_is_read_with_or_without_leading_zeros() -> None:
    public = rsa.generate_private_key(65537, 2048).public_key()
    modulus = public.public_numbers().n.to_bytes(256, "big")
    for leading in (b"", b"\0"):
        assert encoding.rsa_public_key(leading + modulus, b"\x01\x00\x01") == public_keys.to_der(public)


ED25519 = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
"""RFC 8032, 7.1, test 1."""


@pytest.mark.parametrize("parameters", ["06032b6570", "130c656477617264733235353139"])
@pytest.mark.parametrize("point", [ED25519, b"\x04\x20" + ED25519, b"\x03\x21\x00" + ED25519])
def test_an_ed25519_key_is_read_in_every_form(parameters: str, point: bytes) -> None:
    der = encoding.public_key(PublicParts(ec_parameters=bytes.fromhex(parameters), ec_point=point))
    assert der == bytes.fromhex("302a300506032b6570032100") + ED25519


@pytest.mark.parametrize("point", [b"", ED25519[:-1], b"\x04\x21" + ED25519])
def test_what_is_no_ed25519_point_is_refused(point: bytes) -> None:
    with pytest.raises(PermanentlyUnusable, match="CKA_EC_POINT"):
        encoding.public_key(PublicParts(ec_parameters=bytes.fromhex("06032b6570"), ec_point=point))


def test_a_key_on_another_curve_is_none_of_ours() -> None:
    assert encoding.public_key(PublicParts(ec_parameters=bytes.fromhex("06052b81040023"), ec_point=b"\x04")) is None


def test_a_token_is_given_what_its_mechanism_takes() -> None:
    digest = bytes(range(48))
    assert encoding.signing(KeyType.EC_P256, [digest], Scheme(Hash.SHA384)) == (Mechanism.ECDSA, [digest[:32]])
    assert encoding.signing(KeyType.RSA_2048, [digest], Scheme(Hash.SHA384, pss=True)) == (
        Mechanism.PSS_SHA384,
        [digest],
    )
    mechanism, [payload] = encoding.signing(KeyType.RSA_4096, [digest], Scheme(Hash.SHA384))
    assert mechanism is Mechanism.PKCS1
    assert payload.endswith(digest)
    assert len(payload) == 19 + 48
