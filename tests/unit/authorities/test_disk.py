"""UpstreamAuthority "disk": what it signs, its files, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from authorities import issuing
from authorities.disk import Configuration, DiskAuthority
from identity import bundles, tainting
from identity.bundles import JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations import hcl, logs
from operations.errors import ConfigurationError, InvalidArgument, Unsupported
from plugins import catalog
from plugins.catalog import PluginContext
from server.ca import signing
from server.catalog import BUILTINS
from tests.simulators.pki import NOW, Authority, Certificate, PrivateKey, csr, ec_key, spki

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
HOUR = 3600
ROOT = Authority.root(name="root")
REQUEST_KEY = ec_key()
REQUEST = csr(REQUEST_KEY, uris=[TD.id], subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")]))
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- made to be refused


def pem(key: PrivateKey | ed25519.Ed25519PrivateKey, form: str = "PKCS8", password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), encryption)


@dataclass
class Files:
    """A CA's files in a folder."""

    folder: Path

    def put(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def write(self, signer: Authority, *above: bytes, roots: Sequence[bytes] = ()) -> Configuration:
        (self.folder / "cert.pem").write_text(bundles.to_pem([signer.der, *above]))
        (self.folder / "key.pem").write_bytes(pem(signer.key))
        if roots:
            (self.folder / "bundle.pem").write_text(bundles.to_pem(roots))
        return Configuration(
            cert_file_path=str(self.folder / "cert.pem"),
            key_file_path=str(self.folder / "key.pem"),
            bundle_file_path=str(self.folder / "bundle.pem") if roots else "",
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def opened(configuration: Configuration) -> DiskAuthority:
    return await DiskAuthority.open(configuration, TD, logs.get("test"), lambda: SECONDS)


async def test_a_self_signed_ca_is_its_own_bundle(files: Files) -> None:
    authority = await opened(files.write(ROOT))
    minted = await authority.mint_x509_ca(REQUEST, 600)
    assert minted.roots == (X509Authority(ROOT.der),)
    [certificate] = minted.chain
    parsed = x509.load_der_x509_certificate(certificate)
    parsed.verify_directly_issued_by(ROOT.certificate)
    assert parsed.public_key() == REQUEST_KEY.public_key()
    assert parsed.subject.rfc4514_string() == "CN=me"
    assert parsed.not_valid_before_utc == signing.utc(SECONDS - 10)
    assert parsed.not_valid_after_utc == signing.utc(SECONDS + 600)
    found = {each.oid.dotted_string: (each.critical, each.value) for each in parsed.extensions}
    assert found["2.5.29.19"] == (True, x509.BasicConstraints(ca=True, path_length=None))
    assert found["2.5.29.17"] == (
        False,
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://example.org")]),
    )
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    assert tainting.authority_key_id(certificate) == tainting.subject_key_id(ROOT.der)
    assert [update async for update in minted.updates] == []
    await authority.close()


async def test_an_intermediate_comes_with_its_chain(files: Files) -> None:
    middle = ROOT.sub()
    lower = middle.sub()
    configuration = files.write(lower, middle.der, roots=[ROOT.der, ROOT.der])
    minted = await (await opened(configuration)).mint_x509_ca(REQUEST, 0)
    assert minted.chain[1:] == (lower.der, middle.der)
    assert minted.roots == (X509Authority(ROOT.der),)
    parsed = x509.load_der_x509_certificate(minted.chain[0])
    assert parsed.not_valid_after_utc == signing.utc(SECONDS + HOUR)


async def test_nothing_outlives_its_ca(files: Files) -> None:
    minted = await (await opened(files.write(ROOT))).mint_x509_ca(REQUEST, 100 * 24 * HOUR)
    assert x509.load_der_x509_certificate(minted.chain[0]).not_valid_after_utc == ROOT.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("key", "form", "algorithm"),
    [
        (ec_key(), "TraditionalOpenSSL", "sha256"),
        (ec_key(ec.SECP384R1()), "PKCS8", "sha384"),
        (ec_key(ec.SECP521R1()), "PKCS8", "sha512"),
        (rsa.generate_private_key(65537, 2048), "TraditionalOpenSSL", "sha256"),
    ],
    ids=["p256", "p384", "p521", "rsa"],
)
async def test_kinds_of_keys(files: Files, key: PrivateKey, form: str, algorithm: str) -> None:
    root = Authority.root(key=key)
    configuration = files.write(root)
    files.put("key.pem", pem(key, form))
    [certificate] = (await (await opened(configuration)).mint_x509_ca(REQUEST, 60)).chain
    parsed = x509.load_der_x509_certificate(certificate)
    parsed.verify_directly_issued_by(root.certificate)
    assert parsed.signature_hash_algorithm is not None
    assert parsed.signature_hash_algorithm.name == algorithm


async def test_replaced_files_are_used_at_once(files: Files) -> None:
    configuration = files.write(ROOT)
    authority = await opened(configuration)
    other = Authority.root(name="other")
    files.write(other)
    minted = await authority.mint_x509_ca(REQUEST, 60)
    assert minted.roots == (X509Authority(other.der),)
    x509.load_der_x509_certificate(minted.chain[0]).verify_directly_issued_by(other.certificate)


async def test_half_replaced_files_leave_what_was_read_before(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    configuration = files.write(ROOT)
    authority = await opened(configuration)
    files.put("cert.pem", bundles.to_pem([Authority.root().der]).encode())
    minted = await authority.mint_x509_ca(REQUEST, 60)
    assert minted.roots == (X509Authority(ROOT.der),)
    files.put("cert.pem", b"")
    await authority.mint_x509_ca(REQUEST, 60)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["The upstream CA's files cannot be used; going on with what was read before"] * 2


async def test_it_has_nothing_to_say_of_jwt_keys(files: Files) -> None:
    authority = await opened(files.write(ROOT))
    assert authority.name == "disk"
    with pytest.raises(Unsupported, match="publishing upstream is unsupported"):
        await authority.publish_jwt_key(JwtAuthority("a", spki(ec_key())))
    with pytest.raises(Unsupported, match="fetching upstream trust bundle is unsupported"):
        await authority.subscribe_to_local_bundle()


Damage = Callable[[Configuration], object]


def _write(setting: str, content: bytes) -> Damage:
    return lambda configuration: Path(getattr(configuration, setting)).write_bytes(content)


CERT, KEY, BUNDLE = "cert_file_path", "key_file_path", "bundle_file_path"
LEAF = bundles.to_pem([ROOT.sign()]).encode()
NO_CA_KEY = ec_key()
NO_CA = Authority(NO_CA_KEY, x509.load_der_x509_certificate(ROOT.sign(Certificate(), NO_CA_KEY)))
ENDED = Authority.root()
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "no cert": (lambda files: Path(files.cert_file_path).unlink(), CERT, "CA cert: No such file or directory"),
    "no key": (lambda files: Path(files.key_file_path).unlink(), KEY, "CA key: No such file or directory"),
    "no bundle": (lambda files: Path(files.bundle_file_path).unlink(), BUNDLE, "CA bundle: No such file"),
    "empty cert": (_write(CERT, b""), CERT, "CA cert: no PEM blocks"),
    "cut cert": (_write(CERT, bundles.to_pem([ROOT.der]).encode()[:200]), CERT, "CA cert: no PEM blocks"),
    "key as cert": (_write(CERT, pem(ROOT.key)), CERT, 'expected block type "CERTIFICATE"; got "PRIVATE KEY"'),
    "garbage cert": (_write(CERT, bundles.to_pem([b"garbage"]).encode()), CERT, "not a well-formed X.509 certificate"),
    "cert as key": (_write(KEY, bundles.to_pem([ROOT.der]).encode()), KEY, "no unencrypted private key in PEM"),
    "encrypted key": (_write(KEY, pem(ROOT.key, password=b"secret")), KEY, "no unencrypted private key in PEM"),
    "ed25519 key": (_write(KEY, pem(ed25519.Ed25519PrivateKey.generate())), KEY, "use an RSA or ECDSA key"),
    "another key": (_write(KEY, pem(ec_key())), CERT, "certificate and private key do not match"),
    "another bundle": (
        _write(BUNDLE, bundles.to_pem([Authority.root().der]).encode()),
        CERT,
        "certificate cannot be validated with the provided bundle or is not self-signed",
    ),
    "empty bundle": (_write(BUNDLE, b"\n"), BUNDLE, "CA bundle: no PEM blocks"),
}


@pytest.mark.parametrize(("damage", "setting", "reason"), DAMAGES.values(), ids=DAMAGES)
async def test_files_that_cannot_be_used_are_named(files: Files, damage: Damage, setting: str, reason: str) -> None:
    configuration = files.write(ROOT.sub(), roots=[ROOT.der])
    damage(configuration)
    with pytest.raises(ConfigurationError) as caught:
        await opened(configuration)
    assert str(caught.value).startswith(f"{getattr(configuration, setting)}: unable to load upstream CA")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_leaf_is_no_authority(files: Files) -> None:
    with pytest.raises(ConfigurationError, match="not that of a CA"):
        await opened(files.write(NO_CA, roots=[ROOT.der]))


async def test_an_intermediate_without_a_bundle_is_refused(files: Files) -> None:
    middle = ROOT.sub()
    with pytest.raises(ConfigurationError, match="only self-signed CAs are supported, and the file has 2"):
        await opened(files.write(middle, ROOT.der))


async def test_an_expired_ca_is_refused(files: Files) -> None:
    configuration = files.write(ROOT)
    late = SECONDS + 48 * HOUR
    with pytest.raises(ConfigurationError, match="certificate has expired"):
        await DiskAuthority.open(configuration, TD, logs.get("test"), lambda: late)


def tampered() -> bytes:
    changed = bytearray(REQUEST)
    changed[-1] ^= 1
    return bytes(changed)


REQUESTS = {
    "garbage": (b"garbage", "unable to parse CSR"),
    "empty": (b"", "unable to parse CSR"),
    "huge": (b"\x30" * 70_000, "unable to parse CSR: longer than"),
    "another's signature": (tampered(), "CSR signature check failed"),
    "a weak key": (csr(WEAK_RSA, uris=[TD.id]), "unsupported public key"),
    "an unusual curve": (csr(ec_key(ec.SECP256K1()), uris=[TD.id]), "unsupported public key"),
    "no name": (csr(ec_key()), "CSR must have exactly one URI SAN"),
    "two names": (csr(ec_key(), uris=[TD.id, TD.id + "/x"]), "CSR must have exactly one URI SAN"),
    "a workload's name": (csr(ec_key(), uris=[TD.id + "/x"]), "must use the trust domain ID for trust domain"),
    "another domain's name": (csr(ec_key(), uris=["spiffe://other.org"]), "must use the trust domain ID"),
    "no SPIFFE ID": (
        csr(ec_key(), uris=["https://example.org"]),
        'CSR with SPIFFE ID "https://example.org" is invalid',
    ),
}


@pytest.mark.parametrize(("request_", "reason"), REQUESTS.values(), ids=REQUESTS)
async def test_requests_that_are_not_signed(files: Files, request_: bytes, reason: str) -> None:
    authority = await opened(files.write(ROOT))
    with pytest.raises(InvalidArgument, match=reason):
        await authority.mint_x509_ca(request_, 60)


@settings(max_examples=200)
@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_request_is_refused(position: int, change: int) -> None:
    changed = bytearray(REQUEST)
    changed[position] ^= change
    with pytest.raises(InvalidArgument):
        issuing.sign(issuing.Ca(ROOT.certificate, ROOT.key), bytes(changed), TD, 60, SECONDS)


def test_a_request_does_not_say_what_its_certificate_may_do() -> None:
    mark = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in (
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(TD.id), x509.DNSName("example.org")]),
        x509.BasicConstraints(ca=False, path_length=None),
        x509.NameConstraints([x509.DNSName("example.org")], None),
        x509.SubjectKeyIdentifier(b"mine"),
        mark,
    ):
        builder = builder.add_extension(extension, critical=True)
    request = builder.sign(ec_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    signed = issuing.sign(issuing.Ca(ROOT.certificate, ROOT.key), request, TD, 60, SECONDS)
    extensions = x509.load_der_x509_certificate(signed).extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    assert names == [x509.UniformResourceIdentifier(TD.id)]
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest != b"mine"
    assert extensions[-1].value == mark
    assert not [each for each in extensions if isinstance(each.value, x509.NameConstraints)]


def test_what_another_key_signed_does_not_verify() -> None:
    signed = issuing.sign(issuing.Ca(ROOT.certificate, ec_key()), REQUEST, TD, 60, SECONDS)
    with pytest.raises(InvalidSignature):
        x509.load_der_x509_certificate(signed).verify_directly_issued_by(ROOT.certificate)


async def test_a_configuration_is_refused_with_file_and_line() -> None:
    def block(data: str) -> catalog.PluginBlock:
        body = hcl.parse(f'plugins {{\n  UpstreamAuthority "disk" {{ plugin_data {{ {data} }} }}\n}}', "server.conf")
        (found,) = catalog.read(body.blocks[0].body)
        return found

    context = PluginContext("example.org", None, logs.get("test"))
    for data, reason in (
        ("", r"server\.conf:2: .*'cert_file_path' and 'key_file_path' must be set and not empty"),
        ('cert_file_path = "x"', r"server\.conf:2: .*'cert_file_path' and 'key_file_path' must be set and not empty"),
        ('certs = "x"', r"server\.conf:2: unknown key"),
        (
            'cert_file_path = "/no"\n key_file_path = "/none"',
            r"server\.conf:2: .*/none: unable to load upstream CA key",
        ),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            await catalog.load(block(data), BUILTINS, context)
