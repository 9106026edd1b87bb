"""SPIFFE bundles as JWK sets (SPIFFE Trust Domain and Bundle standard, section 4; RFC 7517, RFC 7518 and RFC 8037)."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from identity import der
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations import documents
from operations.errors import InvalidArgument

_X509_USE = "x509-svid"
_JWT_USE = "jwt-svid"
_WIT_USE = "wit-svid"
_KEY_TYPES = ("RSA", "EC", "OKP")
_MAX_DOCUMENT = 4 * 1024 * 1024

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_CURVE_NAMES = {curve.name: name for name, curve in _CURVES.items()}

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_T = TypeVar("_T")


class _Document(msgspec.Struct):
    keys: list[msgspec.Raw]
    spiffe_sequence: _Count = 0
    spiffe_refresh_hint: _Count = 0


class _Use(msgspec.Struct):
    """What is read of a key before it is known whether the rest is meant for us."""

    use: str = ""
    kty: str | None = None


class _Key(msgspec.Struct):
    kty: str
    kid: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    n: str = ""
    e: str = ""
    x5c: tuple[str, ...] = ()


def dump(bundle: Bundle, *, x509: bool = True, jwt: bool = True, wit: bool = True, standard: bool = False) -> str:
    """The bundle document, indented by four spaces, members in the order SPIRE has them.

    `standard` omits `use` and the SPIFFE members, as in the Workload API's JWT bundles, and WIT authorities, which
    nothing would tell from those of JWT-SVIDs. Raises InvalidArgument for an authority that cannot be parsed.
    """
    keys: list[dict[str, Any]] = []
    if x509:
        keys += [_x509_entry(authority) for authority in bundle.x509_authorities]
    if jwt:
        keys += [_key_entry(_JWT_USE, authority) for authority in bundle.jwt_authorities]
    if wit and not standard:
        keys += [_key_entry(_WIT_USE, authority) for authority in bundle.wit_authorities]
    document: dict[str, Any] = {"keys": keys}
    if standard:
        for key in keys:
            del key["use"]
    else:
        if bundle.sequence_number:
            document["spiffe_sequence"] = bundle.sequence_number
        if bundle.refresh_hint:
            document["spiffe_refresh_hint"] = bundle.refresh_hint
    return json.dumps(document, indent=4)


def load(trust_domain: TrustDomain, document: str | bytes) -> Bundle:
    """Read a bundle document. Raises InvalidArgument.

    Keys of an unknown use or type are ignored, as sections 4.2.1 and 4.2.2 ask. A key without any use is refused: a
    plain JWKS would otherwise read as an empty bundle.
    """
    if len(document) > _MAX_DOCUMENT:
        raise InvalidArgument(f"unable to parse JWKS: longer than {_MAX_DOCUMENT} bytes")
    parsed = _decode(document, _Document)
    x509: list[X509Authority] = []
    keys: dict[str, dict[str, bytes]] = {_JWT_USE: {}, _WIT_USE: {}}
    for index, raw in enumerate(parsed.keys):
        head = _decode(raw, _Use)
        use = head.use
        if not use:
            raise InvalidArgument(f"missing use for key entry {index}")
        if head.kty is not None and head.kty not in _KEY_TYPES:
            continue
        if use == _X509_USE:
            x509.append(_x509_authority(_decode(raw, _Key), index))
        elif use in keys:
            key = _decode(raw, _Key)
            if not key.kid:
                raise InvalidArgument(f"missing key ID in {use} entry {index}")
            public_key = _public_key(key, index)
            if keys[use].setdefault(key.kid, public_key) != public_key:
                raise InvalidArgument(f'{use} entry {index} has the key ID "{key.kid}" of another entry')
    return Bundle(
        trust_domain=trust_domain,
        x509_authorities=tuple(dict.fromkeys(x509)),
        jwt_authorities=tuple(JwtAuthority(*each) for each in keys[_JWT_USE].items()),
        wit_authorities=tuple(WitAuthority(*each) for each in keys[_WIT_USE].items()),
        refresh_hint=parsed.spiffe_refresh_hint,
        sequence_number=parsed.spiffe_sequence,
    )


def _x509_entry(authority: X509Authority) -> dict[str, Any]:
    key = der.authority_key(authority.der)
    parameters = _edwards_jwk(key) if isinstance(key, ed25519.Ed25519PublicKey) else jwk(key)
    return {"use": _X509_USE, **parameters, "x5c": [base64.b64encode(authority.der).decode()]}


def _key_entry(use: str, authority: JwtAuthority | WitAuthority) -> dict[str, Any]:
    return {"use": use, **jwk(der.public_key(authority.public_key), authority.key_id)}


def _x509_authority(key: _Key, index: int) -> X509Authority:
    if len(key.x5c) != 1:
        raise InvalidArgument(f"expected a single certificate in x509-svid entry {index}; got {len(key.x5c)}")
    try:
        certificate = base64.b64decode(key.x5c[0], validate=True)
    except ValueError as error:
        raise InvalidArgument(f"the certificate in x509-svid entry {index} is not valid base64") from error
    if not _names_key_of(key, certificate, index):
        raise InvalidArgument(f"the certificate in x509-svid entry {index} has another public key than the entry")
    return X509Authority(certificate)


def _names_key_of(key: _Key, certificate: bytes, index: int) -> bool:
    found = der.authority_key(certificate)
    if isinstance(found, ed25519.Ed25519PublicKey):
        named = _edwards_jwk(found)
        return (key.kty, key.crv, key.x) == (named["kty"], named["crv"], named["x"])
    return der.certificate_key(certificate) == _public_key(key, index)


def _edwards_jwk(key: ed25519.Ed25519PublicKey) -> dict[str, str]:
    """RFC 8037, section 2. Only X.509 authorities have such keys; JWT-SVIDs are not signed by them."""
    return {"kty": "OKP", "crv": "Ed25519", "x": _base64url_of(key.public_bytes_raw())}


def jwk(key: der.PublicKey, key_id: str = "") -> dict[str, str]:
    """The members of a public key's JWK (RFC 7518, section 6). Raises InvalidArgument for a curve that has none."""
    kid = {"kid": key_id} if key_id else {}
    numbers = key.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        return {"kty": "RSA", **kid, "n": base64url(numbers.n), "e": base64url(numbers.e)}
    name = _CURVE_NAMES.get(numbers.curve.name)
    if name is None:
        raise InvalidArgument(f"elliptic curve {numbers.curve.name} has no place in a JWKS: use P-256, P-384 or P-521")
    length = (numbers.curve.key_size + 7) // 8
    return {"kty": "EC", **kid, "crv": name, "x": base64url(numbers.x, length), "y": base64url(numbers.y, length)}


def _public_key(key: _Key, index: int) -> bytes:
    """The key as DER SubjectPublicKeyInfo."""
    try:
        if key.kty == "RSA":
            parsed: der.PublicKey = rsa.RSAPublicNumbers(_number(key.e), _number(key.n)).public_key()
        elif key.kty == "EC" and key.crv in _CURVES:
            numbers = ec.EllipticCurvePublicNumbers(_number(key.x), _number(key.y), _CURVES[key.crv])
            parsed = numbers.public_key()
        else:
            kind = f"{key.kty} {key.crv}".strip()
            raise InvalidArgument(f"key entry {index} has the unsupported key type {kind}")
    except (ValueError, binascii.Error) as error:
        raise InvalidArgument(f"key entry {index} is not a valid {key.kty} key") from error
    info = der.subject_public_key_info(parsed)
    der.public_key(info)  # which refuses what is larger than any key
    return info


def _number(text: str) -> int:
    """Base64urlUInt of RFC 7518, section 2."""
    octets = text.encode("ascii", "replace")
    return int.from_bytes(base64.b64decode(octets + b"=" * (-len(octets) % 4), altchars=b"-_", validate=True), "big")


def base64url(number: int, length: int = 0) -> str:
    """Base64urlUInt of RFC 7518, section 2, of `length` octets or as many as it takes."""
    return _base64url_of(number.to_bytes(length or (number.bit_length() + 7) // 8, "big"))


def _base64url_of(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decode(document: str | bytes | msgspec.Raw, kind: type[_T]) -> _T:
    try:
        return documents.decode(document, kind)
    except documents.Malformed as error:
        raise InvalidArgument(f"unable to parse JWKS: {error}") from error
