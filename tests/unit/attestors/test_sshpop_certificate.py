"""SSH certificates, keys and signatures: as others write them, of every kind, forged, cut short, and at random."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.sshpop import authorized_keys, certificate, keys, verifier
from attestors.sshpop.keys import PrivateKey, Signature
from attestors.sshpop.wire import Reader, natural, string
from operations.errors import InvalidArgument, Refused

NOW = int(time.time())
SHA1 = hashes.SHA1()  # noqa: S303 - as Go's agents sign
RSA = rsa.generate_private_key(65537, 2048)
CA = ed25519.Ed25519PrivateKey.generate()
KEYS: dict[str, PrivateKey] = {
    "rsa": RSA,
    "nistp256": ec.generate_private_key(ec.SECP256R1()),
    "nistp384": ec.generate_private_key(ec.SECP384R1()),
    "nistp521": ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
HOST = KEYS["ed25519"]


def builder(key: PrivateKey = HOST) -> SSHCertificateBuilder:
    return (
        SSHCertificateBuilder()
        .public_key(key.public_key())
        .serial(7)
        .type(SSHCertificateType.HOST)
        .key_id(b"rack")
        .valid_principals([b"node-1.example.org", b"other"])
        .valid_after(NOW - 60)
        .valid_before(NOW + 60)
    )


def made(build: SSHCertificateBuilder, ca: PrivateKey = CA) -> bytes:
    return base64.b64decode(build.sign(ca).public_bytes().split()[1])


def by_ca(data: bytes) -> bytes:
    return string(b"ssh-ed25519") + string(keys.sign(CA, data).blob)


GOOD = {name: made(builder(key)) for name, key in KEYS.items()}


def by_hand(
    signature_key: bytes,
    sign: Callable[[bytes], bytes],
    *,
    key: bytes = keys.public_blob(HOST),
    options: bytes = b"",
    kind: bytes = b"ssh-ed25519-cert-v01@openssh.com",
) -> bytes:
    """A host's certificate, field by field (PROTOCOL.certkeys); `sign` makes the whole signature."""
    reader = Reader(key)
    reader.string()
    signed = b"".join(
        (
            *(string(kind), string(b"nonce"), reader.take(reader.left)),
            *((7).to_bytes(8), (2).to_bytes(4), string(b"rack"), string(string(b"node-1.example.org"))),
            *((0).to_bytes(8), certificate.FOREVER.to_bytes(8)),
            *(string(options), string(b""), string(b""), string(signature_key)),
        )
    )
    return signed + string(sign(signed))


def verify(blob: bytes, *authorities: bytes, now: int = NOW) -> certificate.Certificate:
    host = certificate.parse(blob)
    verifier.verify(host, authorities or (keys.public_blob(CA),), now)
    return host


@pytest.mark.parametrize("name", KEYS)
def test_certificates_of_each_kind_by_cas_of_each_kind(name: str) -> None:
    key = KEYS[name]
    host = verify(made(builder(key)))
    assert host.key.blob == keys.public_blob(key)
    assert (host.serial, host.key_id, host.type) == (7, b"rack", certificate.HOST)
    assert host.principals == (b"node-1.example.org", b"other")
    assert (host.valid_after, host.valid_before) == (NOW - 60, NOW + 60)
    assert verify(made(builder(), ca=key), keys.public_blob(key)).signature_key.blob == keys.public_blob(key)


@pytest.mark.parametrize("name", KEYS)
def test_signatures(name: str) -> None:
    key = KEYS[name]
    public = keys.parse(keys.public_blob(key))
    signature = keys.sign(key, b"data")
    keys.verify(public, b"data", signature)
    for other, data in (
        (signature, b"other data"),
        (replace(signature, blob=signature.blob[:-1]), b"data"),
        (replace(signature, blob=signature.blob + b"\0"), b"data"),
        (replace(signature, blob=b""), b"data"),
        (replace(signature, rest=b"\1\0\0\0\0"), b"data"),
        (replace(signature, format="ssh-ed448"), b"data"),
    ):
        with pytest.raises(Refused):
            keys.verify(public, data, other)
    for stranger in KEYS.values():
        if stranger is not key:
            with pytest.raises(Refused):
                keys.verify(keys.parse(keys.public_blob(stranger)), b"data", signature)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("ssh-rsa", SHA1), ("rsa-sha2-256", hashes.SHA256()), ("rsa-sha2-512", hashes.SHA512())],
)
def test_signatures_by_rsa_of_other_agents(name: str, digest: hashes.HashAlgorithm) -> None:
    public = keys.parse(keys.public_blob(RSA))
    blob = RSA.sign(b"data", padding.PKCS1v15(), digest)
    keys.verify(public, b"data", Signature(name, blob))
    with pytest.raises(Refused, match="did not verify"):
        keys.verify(public, b"data", Signature("rsa-sha2-512" if name != "rsa-sha2-512" else "ssh-rsa", blob))


def test_a_short_signature_by_rsa() -> None:
    """Without the zeroes in front, as some write it."""
    public = keys.parse(keys.public_blob(RSA))
    data, blob = next(
        (data, blob)
        for data in (str(number).encode() for number in range(100_000))
        if (blob := RSA.sign(data, padding.PKCS1v15(), hashes.SHA256()))[0] == 0
    )
    keys.verify(public, data, Signature("rsa-sha2-256", blob.lstrip(b"\0")))


def security_key(kind: str) -> tuple[bytes, Callable[..., bytes]]:
    """A key in hardware, and how it signs (OpenSSH's PROTOCOL.u2f)."""
    secret = KEYS["nistp256" if "ecdsa" in kind else "ed25519"]
    reader = Reader(keys.public_blob(secret))
    reader.string()
    public = string(kind.encode()) + reader.take(reader.left) + string(b"ssh:")

    def sign(data: bytes, flags: bytes = b"\0") -> bytes:
        asked = sha256(b"ssh:").digest() + flags + (9).to_bytes(4) + sha256(data).digest()
        if isinstance(secret, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(secret.sign(asked, ec.ECDSA(hashes.SHA256())))
            blob = natural(r) + natural(s)
        else:
            assert isinstance(secret, ed25519.Ed25519PrivateKey)
            blob = secret.sign(asked)
        return string(kind.encode()) + string(blob) + flags + (9).to_bytes(4)

    return public, sign


@pytest.mark.parametrize("kind", ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"])
def test_security_keys(kind: str) -> None:
    """As CAs, whether they were touched or not; as hosts, only if they were."""
    public, sign = security_key(kind)
    assert verify(by_hand(public, sign), public).signature_key.application == b"ssh:"
    with pytest.raises(Refused, match="certificate signature does not verify"):
        verify(by_hand(public, lambda data: sign(data + b"x")), public)

    mark = kind.removesuffix("@openssh.com").encode() + b"-cert-v01@openssh.com"
    host = verify(by_hand(keys.public_blob(CA), by_ca, key=public, kind=mark))
    assert host.key.kind == kind

    def signature(flags: bytes) -> Signature:
        reader = Reader(sign(b"data", flags))
        return Signature(reader.string().decode(), reader.string(), reader.take(reader.left))

    keys.verify(host.key, b"data", signature(b"\1"))
    for wrong in (signature(b"\0"), replace(signature(b"\1"), rest=b""), replace(signature(b"\1"), rest=b"\1" * 6)):
        with pytest.raises(Refused, match="ssh: signature did not verify"):
            keys.verify(host.key, b"data", wrong)


def test_what_makes_a_certificate_void() -> None:
    good = builder()
    for blob, words in (
        (made(good.add_critical_option(b"force-command", b"x")), 'unsupported critical option "force-command"'),
        (made(good.add_critical_option(b"source-address", b"::/0")), 'unsupported critical option "source-address"'),
        (made(good, ca=HOST), "no authorities for hostname: node-1.example.org:22"),
    ):
        with pytest.raises(Refused, match=words):
            verify(blob)
    for now, words in ((NOW - 61, "not yet valid"), (NOW + 60, "has expired"), (2**63, "has expired")):
        with pytest.raises(Refused, match=words):
            verify(made(good), now=now)
    verify(made(good), now=NOW + 59)
    verify(made(good.add_extension(b"note", b"x")))


def test_a_ca_that_signs_with_sha1() -> None:
    def sign(data: bytes) -> bytes:
        return string(b"ssh-rsa") + string(RSA.sign(data, padding.PKCS1v15(), SHA1))

    ca = keys.public_blob(RSA)
    with pytest.raises(Refused, match="signed with SHA-1: sign it with ssh-keygen -t rsa-sha2-512"):
        verify(by_hand(ca, sign), ca)


@pytest.mark.parametrize("name", KEYS)
@settings(max_examples=200, deadline=None)
@given(position=st.integers(0), change=st.integers(1, 255))
def test_a_byte_that_was_changed(name: str, position: int, change: int) -> None:
    blob = bytearray(GOOD[name])
    blob[position % len(blob)] ^= change
    with pytest.raises((InvalidArgument, Refused)):
        verify(bytes(blob))


def test_certificates_that_are_cut_short_or_too_long() -> None:
    blob = made(builder())
    for size in range(len(blob)):
        with pytest.raises(InvalidArgument):
            certificate.parse(blob[:size])
    with pytest.raises(InvalidArgument, match="trailing junk in certificate"):
        certificate.parse(blob + b"\0")
    with pytest.raises(InvalidArgument, match="larger than"):
        certificate.parse(blob + bytes(certificate.LONGEST))


def test_certificates_that_nobody_should_make() -> None:
    public = keys.public_blob(CA)
    twice = string(b"a") + string(b"") + string(b"a") + string(b"")
    for blob, words in (
        (by_hand(public, by_ca, options=twice), "not in lexical order"),
        (
            by_hand(public, by_ca, options=string(b"a") + string(string(b"1") + b"2")),
            "trailing junk in certificate option",
        ),
        (by_hand(made(builder()), by_ca), "signed by another certificate's key"),
        (by_hand(public, by_ca, kind=b"ssh-dss-cert-v01@openssh.com"), "unknown key algorithm: ssh-dss"),
        (string(b"ssh-ed25519-cert-v02@openssh.com"), "unknown key algorithm"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            certificate.parse(blob)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "short read"),
        (string(b"ssh-ed25519") + string(b"short"), "ssh-ed25519 key cannot be used"),
        (string(b"ssh-rsa") + natural(65537) + natural(2**512 + 1), "1024 to 16384 bits"),
        (string(b"ssh-rsa") + natural(65537) + natural(2**20000 + 1), "1024 to 16384 bits"),
        (string(b"ssh-rsa") + natural(2**32 + 1) + natural(2**2047 + 1), "exponent too large"),
        (string(b"ssh-rsa") + natural(2) + natural(2**2047 + 1), "cannot be used"),
        (string(b"ecdsa-sha2-nistp256") + string(b"nistp384") + string(b"\4" + bytes(64)), "cannot be used"),
        (string(b"ecdsa-sha2-nistp256") + string(b"nistp256") + string(b"\4" + bytes(64)), "cannot be used"),
        (keys.public_blob(HOST) + b"\0", "trailing junk in public key"),
        (string(b"rsa-sha2-256") + natural(3) + natural(2**2047 + 1), "unknown key algorithm: rsa-sha2-256"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keys_that_cannot_be_used(blob: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        keys.parse(blob)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_refused(data: bytes) -> None:
    mark = string(b"ecdsa-sha2-nistp256-cert-v01@openssh.com")
    for parse, blob in ((certificate.parse, data), (certificate.parse, mark + data), (keys.parse, data)):
        with pytest.raises(InvalidArgument):
            parse(blob)


@settings(max_examples=300, deadline=None)
@given(number=st.integers(0, 1 << 600))
def test_numbers(number: int) -> None:
    reader = Reader(natural(number))
    assert reader.natural() == number
    reader.end("number")


def line_of(blob: bytes) -> str:
    return f"{keys.kind_of(blob)} {base64.b64encode(blob).decode()}"


def test_lines_with_keys() -> None:
    blob = keys.public_blob(CA)
    line = line_of(blob)
    for text, options in (
        (line, ""),
        (f"# a comment\n\n  {line} root@ca\n", ""),
        (f"cert-authority {line}", "cert-authority"),
        (f'from="a b,c",command="echo \\"ssh-rsa AAAA\\"" {line} x', 'from="a b,c",command="echo \\"ssh-rsa AAAA\\""'),
    ):
        assert authorized_keys.first(text) == authorized_keys.Line(blob, options)
    assert authorized_keys.every(f"#\n{line}\r\n\n{line} x\n") == [line, f"{line} x"]
    for text in ("", "#", "ssh-rsa", line.split()[1], line.replace("ssh-ed25519", "ssh-rsa"), f'a="b {line}', "a b c"):
        with pytest.raises(InvalidArgument, match="no key found"):
            authorized_keys.first(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80))
def test_any_line_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        authorized_keys.first(text)


def test_names_of_hosts() -> None:
    host = certificate.parse(made(builder()))
    assert verifier.hostname(host, "") == "node-1.example.org"
    assert verifier.hostname(host, "example.org") == "node-1"
    with pytest.raises(Refused, match=r'cert principal is not in domain "\.xample.org"'):
        verifier.hostname(host, "xample.org")


def test_dsa_is_not_taken() -> None:
    numbers = dsa.generate_private_key(2048).public_key().public_numbers()
    group = numbers.parameter_numbers
    blob = string(b"ssh-dss") + natural(group.p) + natural(group.q) + natural(group.g) + natural(numbers.y)
    with pytest.raises(InvalidArgument, match="unknown key algorithm: ssh-dss"):
        keys.parse(blob)
