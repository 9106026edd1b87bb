"""Roots in devices, by keys that tests hold: what is signed, what is refused at the start, and what happens later."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from authorities.hardware import HardwareAuthority, Terms, check_files
from identity import asn1, bundles, der, x509svid
from identity.bundles import JwtAuthority, X509Authority
from identity.spiffeid import SpiffeId, TrustDomain
from keystores import errors
from operations import logs
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    TemporarilyUnavailable,
    Unsupported,
)
from plugins.rootkey import RootKey
from server.ca import signing
from tests.simulators.pki import NOW, Authority, Certificate, csr, ec_key, spki
from tests.simulators.roots import DAY, KEYS, PrivateKey, Root, SoftwareRootKey

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
HOUR = 3600
WORKLOAD = SpiffeId(TD, "/workload")
KEY = ec_key()
REQUEST = csr(KEY, uris=[TD.id])
AWAY = errors.TemporarilyUnavailable("the token with token_label 'root' is away")


@dataclass(frozen=True)
class Settings:
    cert_file_path: str
    bundle_file_path: str = ""
    ttl: str = "24h"
    path_length: int | None = None
    permitted_uris: tuple[str, ...] = ()


class Bench:
    """Files in a folder, a key in a device, and the authority over both."""

    def __init__(self, folder: Path, root: Root, *, above: tuple[Root, ...] = ()) -> None:
        self.folder = folder
        self.now = SECONDS
        self.key = SoftwareRootKey(root.key)
        self.away: errors.KeyStoreError | None = None
        self.opened = 0
        self.settings = Settings(str(folder / "root.pem"))
        self.write(root, *above)
        if above:
            self.settings = replace(self.settings, bundle_file_path=str(folder / "bundle.pem"))

    def write(self, *path: Root) -> None:
        """From the issuer up; what stands below the last comes along, and the last is the root."""
        encoded = [each.certificate() for each in path]
        (self.folder / "bundle.pem").write_text(bundles.to_pem(encoded[-1:]))
        (self.folder / "root.pem").write_text(bundles.to_pem(encoded[:-1] or encoded))

    async def open_key(self, certified_key: bytes) -> RootKey:
        if self.away is not None:
            raise self.away
        self.opened += 1
        return self.key

    def authority(self, **changes: Any) -> HardwareAuthority:
        terms = Terms.of(replace(self.settings, **changes))
        return HardwareAuthority("pkcs11", terms, self.open_key, TD, logs.get("test"), lambda: self.now)

    async def started(self, **changes: Any) -> HardwareAuthority:
        authority = self.authority(**changes)
        await authority.start()
        return authority


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Root(KEYS["P-256"]))


async def minted(authority: HardwareAuthority, ttl: int = HOUR) -> x509.Certificate:
    return x509.load_der_x509_certificate((await authority.mint_x509_ca(REQUEST, ttl)).chain[0])


def leaf_below(certificate: x509.Certificate, uri: str = str(WORKLOAD)) -> bytes:
    return Authority(KEY, certificate).sign(Certificate(uris=(uri,)))


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_every_kind_of_root_signs_what_verifies(tmp_path: Path, key: PrivateKey) -> None:
    bench = Bench(tmp_path, Root(key))
    authority = await bench.started(permitted_uris=("example.org",), path_length=0)
    given = await authority.mint_x509_ca(REQUEST, HOUR)
    [own] = given.chain
    certificate = x509.load_der_x509_certificate(own)
    assert certificate.public_key() == KEY.public_key()
    assert certificate.not_valid_after_utc == signing.utc(SECONDS + HOUR)
    roots = {TD: [root.der for root in given.roots]}
    assert x509svid.verify([leaf_below(certificate), own], roots, NOW) == WORKLOAD
    assert bench.key.signatures == 1
    await authority.close()
    assert bench.key.closed


async def test_its_limits_are_in_the_certificate(bench: Bench) -> None:
    certificate = await minted(await bench.started(permitted_uris=("example.org", ".example.org"), path_length=2))
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    names = [x509.UniformResourceIdentifier(host) for host in ("example.org", ".example.org")]
    assert constraints.value == x509.NameConstraints(names, None)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=2)


async def test_names_outside_its_limits_do_not_verify(bench: Bench) -> None:
    certificate = await minted(await bench.started(permitted_uris=("example.org",)))
    roots = bundles.from_pem((bench.folder / "root.pem").read_text())
    own = certificate.public_bytes(Encoding.DER)
    elsewhere = TrustDomain("other.org")
    with pytest.raises(Refused, match="permitted subtree violation"):
        x509svid.verify([leaf_below(certificate, "spiffe://other.org/workload"), own], {elsewhere: roots}, NOW)
    below = Authority(KEY, certificate).sub(
        Certificate(uris=("spiffe://other.org",), subject="other", ca=True, usage=("key_cert_sign",))
    )
    with pytest.raises(Refused, match="permitted subtree violation"):
        x509svid.verify([below.sign(), below.der, own], {TD: roots}, NOW)


async def test_without_limits_there_are_none(bench: Bench) -> None:
    certificate = await minted(await bench.started())
    found = {each.oid for each in certificate.extensions}
    assert x509.NameConstraints.oid not in found
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length is None


@pytest.mark.parametrize(
    ("ttl", "asked", "lives"), [("24h", HOUR, HOUR), ("30m", HOUR, 1800), ("24h", 0, 24 * HOUR), ("90s", 91, 90)]
)
async def test_the_shorter_life_counts(bench: Bench, ttl: str, asked: int, lives: int) -> None:
    certificate = await minted(await bench.started(ttl=ttl), asked)
    assert certificate.not_valid_after_utc == signing.utc(SECONDS + lives)


async def test_nothing_outlives_its_root(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    root = Root(KEYS["P-256"], not_after=NOW + DAY / 2)
    bench.write(root)
    certificate = await minted(await bench.started(), 24 * HOUR)
    assert certificate.not_valid_after_utc == root.not_after
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "ends before the authority that it signs would: replace it" in warning


async def test_a_root_that_ended_signs_no_more(bench: Bench) -> None:
    bench.write(Root(KEYS["P-256"], not_after=NOW + DAY / 2))
    authority = await bench.started()
    bench.now += 24 * HOUR
    with pytest.raises(
        Refused, match=r"root\.pem: the upstream CA's certificate ended at 2026-01-01 12:00:00.*replace"
    ):
        await minted(authority)
    assert bench.key.signatures == 0


async def test_an_intermediate_in_the_device_comes_with_its_chain(tmp_path: Path) -> None:
    top = Root(KEYS["Ed25519"], "top")
    middle = Root(KEYS["P-384"], "middle", above=top)
    bench = Bench(tmp_path, middle, above=(top,))
    given = await (await bench.started()).mint_x509_ca(REQUEST, HOUR)
    own, above = given.chain
    assert der.certificate(above).subject.rfc4514_string() == "CN=middle"
    roots = bundles.from_pem((tmp_path / "bundle.pem").read_text())
    assert given.roots == tuple(map(X509Authority, roots))
    leaf = leaf_below(x509.load_der_x509_certificate(own))
    assert x509svid.verify([leaf, own, above], {TD: roots}, NOW) == WORKLOAD


@pytest.mark.parametrize(
    ("lengths", "wanted", "given"),
    [((1,), None, 0), ((2,), None, 1), ((2,), 0, 0), ((3, 2), None, 0), ((None, 3), 1, 1), ((None, None), 4, 4)],
)
async def test_path_lengths_above_leave_some_below(
    tmp_path: Path, lengths: tuple[int | None, ...], wanted: int | None, given: int
) -> None:
    keys = list(KEYS.values())
    top = Root(keys[-1], "top", path_length=lengths[-1])
    path = (top,) if len(lengths) == 1 else (Root(keys[0], "middle", path_length=lengths[0], above=top), top)
    bench = Bench(tmp_path, path[0], above=path[1:])
    certificate = await minted(await bench.started(path_length=wanted))
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == given


CERT = "cert_file_path"
REFUSED_ROOTS: dict[str, tuple[Root, str]] = {
    "a leaf": (Root(KEYS["P-256"], ca=False), "not that of a CA"),
    "no constraints": (Root(KEYS["P-256"], ca=None), "not that of a CA"),
    "path length 0": (Root(KEYS["P-256"], path_length=0), "its path length allows no authority below it"),
    "no cert sign": (Root(KEYS["P-256"], usage=("crl_sign",)), "may not sign certificates"),
    "ended": (Root(KEYS["P-256"], not_after=NOW - DAY / 24), "certificate has expired"),
    "not begun": (Root(KEYS["P-256"], not_before=NOW + DAY), "certificate is not yet valid"),
    "P-521": (Root(ec.generate_private_key(ec.SECP521R1())), "unsupported key: use ECDSA P-256 or P-384"),
    "another key": (Root(ec_key()), "the certificate is of another key than key_label 'root-2026' in the device"),
}


@pytest.mark.parametrize(("root", "reason"), REFUSED_ROOTS.values(), ids=REFUSED_ROOTS)
async def test_roots_that_are_refused_at_the_start(bench: Bench, root: Root, reason: str) -> None:
    bench.write(root)
    with pytest.raises(ConfigurationError) as caught:
        await bench.started()
    assert str(caught.value).startswith(bench.settings.cert_file_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bench.key.closed == bool(bench.opened)


async def test_an_ecdsa_algorithm_with_parameters_is_explained(bench: Bench) -> None:
    """As tpm2-openssl writes it: in the TBSCertificate and outside."""
    tbs, algorithm, signature = asn1.children(Root(KEYS["P-256"]).certificate())
    parts = list(asn1.children(tbs))
    wrong = asn1.element(asn1.SEQUENCE, next(asn1.children(algorithm)) + b"\x05\x00")
    changed = asn1.element(asn1.SEQUENCE, b"".join([*parts[:2], wrong, *parts[3:]]))
    encoded = asn1.element(asn1.SEQUENCE, changed + wrong + signature)
    (bench.folder / "root.pem").write_text(bundles.to_pem([encoded]))
    with pytest.raises(ConfigurationError, match=r"root\.pem: .* RFC 5758 .* tpm2-openssl"):
        await bench.started()


async def test_a_chain_that_leads_to_no_root_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Root(KEYS["P-256"], "middle", above=Root(ec_key(), "top")), above=(Root(ec_key(), "top"),))
    with pytest.raises(ConfigurationError, match="cannot be validated with the provided bundle"):
        await bench.started()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path_length": 1}, "path_length: 1 is more than .* allows below it, which is 0"),
        ({"path_length": -1}, "path_length: it must not be negative"),
        ({"ttl": "1 day"}, "ttl: time: unknown unit"),
        ({"ttl": "0s"}, "ttl: it must be a second or more"),
        ({"ttl": ""}, "ttl must be set"),
        ({"cert_file_path": ""}, "cert_file_path must be set"),
        ({"cert_file_path": "/none"}, "/none: unable to load upstream CA cert: No such file"),
        ({"bundle_file_path": "/none"}, "/none: unable to load upstream CA bundle: No such file"),
        (
            {"permitted_uris": ("other.org",)},
            'no SVID of trust domain "example.org" would be valid .*: add "example.org"',
        ),
        ({"permitted_uris": (".example.org",)}, 'add "example.org"'),
        ({"permitted_uris": ("spiffe://example.org",)}, "must be the trust domain's name only"),
        ({"permitted_uris": ("Example.org",)}, "must be a trust domain's name"),
        ({"permitted_uris": ("example.org/path",)}, "must be a trust domain's name"),
        ({"permitted_uris": ("10.0.0.1",)}, "is an IP address"),
    ],
)
async def test_settings_that_are_refused(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    bench.write(Root(KEYS["P-256"], path_length=1))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        await bench.started(**changes)
    assert "\n" not in str(caught.value)
    assert bench.opened == 0


def test_an_ip_address_as_trust_domain_has_no_name_constraints(bench: Bench) -> None:
    terms = Terms.of(replace(bench.settings, permitted_uris=("example.org",)))
    with pytest.raises(ConfigurationError, match=r'leave it out: trust domain "10\.0\.0\.1" is an IP address'):
        terms.check_trust_domain(TrustDomain("10.0.0.1"))


def test_files_are_checked_without_the_device(bench: Bench) -> None:
    check_files(bench.settings, SECONDS)
    bench.write(Root(KEYS["P-256"], path_length=0))
    with pytest.raises(ConfigurationError, match="path length"):
        check_files(bench.settings, SECONDS)


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("no key has the key_label 'root-2026'"),
        errors.AlreadyExists("two keys have the key_label 'root-2026'"),
        errors.Refused("the PIN is wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_device_that_says_no_ends_the_start(bench: Bench, error: errors.KeyStoreError) -> None:
    bench.away = error
    with pytest.raises(type(error)) as caught:
        await bench.started()
    assert str(caught.value) == f'UpstreamAuthority "pkcs11": {error}'
    assert caught.value.__cause__ is error


async def test_a_device_that_is_away_at_the_start_is_looked_for_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.away = AWAY
    authority = await bench.started()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "device is away" in warning
    with pytest.raises(TemporarilyUnavailable, match="token_label 'root' is away"):
        await minted(authority)
    bench.away = None
    await minted(authority)
    await minted(authority)
    assert bench.opened == 1


async def test_a_device_with_another_key_is_refused_when_it_is_back(bench: Bench) -> None:
    bench.away = AWAY
    authority = await bench.started()
    bench.away, bench.key = None, SoftwareRootKey(ec_key())
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="of another key than key_label 'root-2026'"):
            await minted(authority)
        assert bench.key.closed
    bench.key = SoftwareRootKey(KEYS["P-256"])
    await minted(authority)


async def test_a_device_that_goes_away_and_returns(bench: Bench) -> None:
    authority = await bench.started()
    bench.key.failing = AWAY
    with pytest.raises(TemporarilyUnavailable, match="away"):
        await minted(authority)
    bench.key.failing = None
    await minted(authority)


async def test_a_wrong_signature_never_leaves(bench: Bench) -> None:
    authority = await bench.started()
    bench.key.signs_with = ec_key()
    with pytest.raises(PermanentlyUnusable, match="key_label 'root-2026' made a wrong signature"):
        await minted(authority)


async def test_a_certificate_is_replaced_while_it_runs(bench: Bench) -> None:
    authority = await bench.started()
    bench.write(Root(KEYS["P-256"], "renewed", path_length=1))
    certificate = await minted(authority)
    assert certificate.issuer.rfc4514_string() == "CN=renewed"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


@pytest.mark.parametrize("root", [Root(ec_key(), "another"), Root(KEYS["P-256"], "short", path_length=0)])
async def test_files_that_cannot_be_used_leave_what_was_before(
    bench: Bench, root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    authority = await bench.started()
    bench.write(root)
    assert (await minted(authority)).issuer.rfc4514_string() == "CN=root"
    (bench.folder / "root.pem").unlink()
    assert (await minted(authority)).issuer.rfc4514_string() == "CN=root"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["The upstream CA's files cannot be used; going on with what was read before"] * 2
    assert not bench.key.closed


async def test_files_that_break_while_the_device_is_away_leave_what_was_before(bench: Bench) -> None:
    bench.away = AWAY
    authority = await bench.started()
    (bench.folder / "root.pem").unlink()
    with pytest.raises(TemporarilyUnavailable):
        await minted(authority)
    bench.away = None
    assert (await minted(authority)).issuer.rfc4514_string() == "CN=root"


async def test_a_root_among_the_certificates_does_not_go_along(tmp_path: Path) -> None:
    top = Root(KEYS["Ed25519"], "top")
    bench = Bench(tmp_path, Root(KEYS["P-384"], "middle", above=top), above=(top,))
    with (tmp_path / "root.pem").open("a") as file:
        file.write((tmp_path / "bundle.pem").read_text())
    given = await (await bench.started()).mint_x509_ca(REQUEST, HOUR)
    assert len(given.chain) == 2


async def test_it_does_not_open_the_device_again_once_closed(bench: Bench) -> None:
    authority = await bench.started()
    await authority.close()
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await minted(authority)
    assert bench.opened == 1


async def test_what_is_no_request_does_not_reach_the_device(bench: Bench) -> None:
    authority = await bench.started()
    for request in (b"", b"garbage", csr(KEY, uris=["spiffe://other.org"]), REQUEST[:-1] + b"\0"):
        with pytest.raises(InvalidArgument, match="CSR"):
            await authority.mint_x509_ca(request, HOUR)
    assert bench.key.signatures == 0


async def test_many_at_once_open_the_device_once(bench: Bench) -> None:
    authority = bench.authority()
    found = await asyncio.gather(*(minted(authority) for _ in range(20)))
    assert len({each.serial_number for each in found}) == 20
    assert bench.opened == 1
    await authority.close()
    await authority.close()


async def test_it_has_nothing_to_say_of_jwt_keys(bench: Bench) -> None:
    authority = await bench.started()
    assert authority.name == "pkcs11"
    with pytest.raises(Unsupported, match="publishing upstream is unsupported"):
        await authority.publish_jwt_key(JwtAuthority("a", spki(ec_key())))
    with pytest.raises(Unsupported, match="fetching upstream trust bundle is unsupported"):
        await authority.subscribe_to_local_bundle()
