"""What is issued: its contents, its limits, and that every verifier takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from identity import jwtsvid, x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from keystores.memory import MemoryKeyManager
from operations.errors import ConfigurationError, InvalidArgument, Refused, TemporarilyUnavailable, Unsupported
from plugins.keymanager import KeyType
from server.ca import checks, signing
from server.ca.certificate_authority import CaSettings, CertificateAuthority, Subject
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.pki import NOW, csr, ec_key, spki

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
HOUR = 3600


@dataclass(frozen=True)
class Entry:
    spiffe_id: str = "spiffe://example.org/workload"
    dns_names: Sequence[str] = ()
    x509_svid_ttl: int = 0


@dataclass
class Ca:
    """An authority, the clock it reads and the store it keeps its state in."""

    settings: CaSettings
    store: MemoryAuthorityStore
    keys: MemoryKeyManager
    now: float = SECONDS

    async def start(self) -> CertificateAuthority:
        authority = CertificateAuthority(self.settings, self.keys, self.store, now=lambda: self.now)
        await authority.start()
        return authority


def make(settings: CaSettings | None = None) -> Ca:
    return Ca(settings or CaSettings(trust_domain=TD), MemoryAuthorityStore(), MemoryKeyManager())


def verify(ca: Ca, chain: Sequence[bytes]) -> SpiffeId:
    return x509svid.verify(chain, {TD: ca.store.roots}, signing.utc(int(ca.now)))


@pytest.mark.parametrize("key_type", list(KeyType))
async def test_every_key_type_issues_what_verifies(key_type: KeyType) -> None:
    ca = make(CaSettings(trust_domain=TD, ca_key_type=key_type, jwt_key_type=key_type))
    authority = await ca.start()
    [issued] = await authority.issue_x509([checks.approve_workload(csr(ec_key()), Entry(), TD)])
    assert verify(ca, issued.chain) == issued.spiffe_id == SpiffeId(TD, "/workload")

    token = await authority.issue_jwt(checks.approve_jwt(SpiffeId(TD, "/workload"), ["a"]))
    svid = jwtsvid.verify(token.token, {TD: ca.store.jwt_authorities}, "a", NOW)
    assert (svid.issued_at, svid.expires_at) == (token.issued_at, token.expires_at) == (SECONDS, SECONDS + 300)
    [key] = ca.store.jwt_authorities
    header = jwt.get_unverified_header(token.token)
    expected = {"ec-p256": "ES256", "ec-p384": "ES384", "rsa-2048": "RS256", "rsa-4096": "RS256"}[key_type.value]
    assert header == {"alg": expected, "kid": key.key_id, "typ": "JWT"}


async def test_authority_certificate() -> None:
    ca = make()
    authority = await ca.start()
    [root] = [x509.load_der_x509_certificate(der) for der in ca.store.roots]
    assert root.subject == root.issuer
    assert [attribute.value for attribute in root.subject] == ["US", "SPIFFE", str(root.serial_number)]
    assert root.not_valid_before_utc == signing.utc(SECONDS - 10)
    assert root.not_valid_after_utc == signing.utc(SECONDS + 24 * HOUR)
    san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=None))
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    key_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert key_id == x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    assert authority.x509_authority().authority_id == key_id.digest.hex()


async def test_leaf_certificate() -> None:
    ca = make()
    authority = await ca.start()
    key = ec_key()
    approved = checks.approve_workload(csr(key), Entry(dns_names=("a.example.org", "*.b.org"), x509_svid_ttl=60), TD)
    [issued] = await authority.issue_x509([approved])
    (der,) = issued.chain
    leaf = x509.load_der_x509_certificate(der)
    assert leaf.serial_number == issued.serial
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_before_utc == signing.utc(SECONDS - 10)
    assert leaf.not_valid_after_utc == signing.utc(SECONDS + 60) == signing.utc(issued.expires_at)
    assert [(a.oid, a.value) for a in leaf.subject] == [
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.ORGANIZATION_NAME, "SPIRE"),
        (NameOID.COMMON_NAME, "a.example.org"),
    ]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not san.critical
    assert san.value.get_values_for_type(x509.DNSName) == ["a.example.org", "*.b.org"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    root = x509.load_der_x509_certificate(ca.store.roots[0])
    assert leaf.issuer == root.subject
    authority_key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert (authority_key.key_identifier or b"").hex() == authority.x509_authority().authority_id
    leaf.verify_directly_issued_by(root)


async def test_agents_and_the_server() -> None:
    ca = make(CaSettings(trust_domain=TD, agent_ttl=7200))
    authority = await ca.start()
    agent = SpiffeId(TD, "/spire/agent/join_token/x")
    issued = await authority.issue_x509(
        [checks.approve_agent(csr(ec_key()), agent), checks.approve_server(spki(ec_key()), TD)]
    )
    assert [verify(ca, each.chain) for each in issued] == [agent, SpiffeId(TD, "/spire/server")]
    assert [each.expires_at for each in issued] == [SECONDS + 7200, SECONDS + 3600]


async def test_minted_certificates_have_the_subject_of_the_csr() -> None:
    ca = make()
    authority = await ca.start()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "me"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"),
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "dropped"),
        ]
    )
    request = csr(ec_key(), uris=["spiffe://example.org/minted"], dns_names=["minted.example.org"], subject=subject)
    [issued] = await authority.issue_x509([checks.approve_mint(request, TD, 60)])
    leaf = x509.load_der_x509_certificate(issued.chain[0])
    assert leaf.subject.rfc4514_string() == "CN=minted.example.org,O=Acme"
    assert issued.expires_at == SECONDS + 60
    assert verify(ca, issued.chain).path == "/minted"


async def test_lifetimes_end_with_the_authoritys() -> None:
    ca = make()
    authority = await ca.start()
    ca.now += 23 * HOUR + 1800
    [issued] = await authority.issue_x509([checks.approve_workload(csr(ec_key()), Entry(), TD)])
    assert issued.expires_at == SECONDS + 24 * HOUR
    token = await authority.issue_jwt(checks.approve_jwt(SpiffeId(TD, "/w"), ["a"], 7200))
    assert token.expires_at == SECONDS + 24 * HOUR
    ca.now = SECONDS + 24 * HOUR
    with pytest.raises(TemporarilyUnavailable, match="X509 CA is not available for signing"):
        await authority.issue_x509([checks.approve_workload(csr(ec_key()), Entry(), TD)])
    with pytest.raises(TemporarilyUnavailable, match="JWT key is not available for signing"):
        await authority.issue_jwt(checks.approve_jwt(SpiffeId(TD, "/w"), ["a"]))


async def test_batches_keep_their_order() -> None:
    ca = make()
    authority = await ca.start()
    request = csr(ec_key())
    entries = [Entry(f"spiffe://example.org/w{number}") for number in range(150)]
    approved = await checks.approve_workloads([(request, entry) for entry in entries], TD)
    assert not any(isinstance(each, InvalidArgument) for each in approved)
    issued = await authority.issue_x509([each for each in approved if isinstance(each, checks.ApprovedX509)])
    assert [str(each.spiffe_id) for each in issued] == [entry.spiffe_id for entry in entries]
    assert [str(x509svid.leaf_id(each.chain[0])) for each in issued] == [entry.spiffe_id for entry in entries]
    assert len({each.serial for each in issued}) == len(issued)


async def test_an_approval_issues_once() -> None:
    ca = make()
    authority = await ca.start()
    approved = checks.approve_workload(csr(ec_key()), Entry(), TD)
    await authority.issue_x509([approved])
    with pytest.raises(Refused, match="used already"):
        await authority.issue_x509([approved])
    twice = checks.approve_workload(csr(ec_key()), Entry(), TD)
    with pytest.raises(Refused, match="used already"):
        await authority.issue_x509([twice, twice])
    token = checks.approve_jwt(SpiffeId(TD, "/w"), ["a"])
    await authority.issue_jwt(token)
    with pytest.raises(Refused, match="used already"):
        await authority.issue_jwt(token)


async def test_other_trust_domains_are_refused() -> None:
    authority = await make().start()
    other = TrustDomain("other.org")
    with pytest.raises(Refused, match="is not a member of trust domain"):
        await authority.issue_x509([checks.approve_workload(csr(ec_key()), Entry("spiffe://other.org/w"), other)])
    with pytest.raises(Refused, match="is not a member of trust domain"):
        await authority.issue_jwt(checks.approve_jwt(SpiffeId(other, "/w"), ["a"]))


async def test_jwt_claims() -> None:
    ca = make(CaSettings(trust_domain=TD, jwt_issuer="https://issuer", jwt_svid_ttl=100))
    authority = await ca.start()
    approved = checks.approve_jwt(SpiffeId(TD, "/w"), ["a", "", "b"], include_jti=True)
    token = (await authority.issue_jwt(approved)).token
    claims = jwt.decode(token, options={"verify_signature": False})
    assert len(claims.pop("jti")) == 22
    assert claims == {
        "iss": "https://issuer",
        "sub": "spiffe://example.org/w",
        "aud": ["a", "b"],
        "iat": SECONDS,
        "exp": SECONDS + 100,
    }


async def test_jwt_svids_can_be_turned_off() -> None:
    ca = make(CaSettings(trust_domain=TD, disable_jwt_svids=True))
    authority = await ca.start()
    assert not ca.store.jwt_authorities
    assert authority.jwt_authorities() == []
    with pytest.raises(Unsupported, match="JWT functionality is disabled"):
        await authority.issue_jwt(checks.approve_jwt(SpiffeId(TD, "/w"), ["a"]))


async def test_configured_subject() -> None:
    subject = Subject(("DE", "FR"), ("One", "Two"), "The CA")
    ca = make(CaSettings(trust_domain=TD, subject=subject))
    await ca.start()
    name = x509.load_der_x509_certificate(ca.store.roots[0]).subject
    assert name.rfc4514_string().endswith(",CN=The CA,O=One+O=Two,C=DE+C=FR")
    with pytest.raises(ConfigurationError, match="ca_subject cannot stand in a certificate"):
        CaSettings(trust_domain=TD, subject=Subject(country=("USA",)))


async def test_rsa_and_p384_workload_keys() -> None:
    ca = make()
    authority = await ca.start()
    key = ec_key(ec.SECP384R1())
    [issued] = await authority.issue_x509([checks.approve_workload(csr(key), Entry(), TD)])
    assert x509.load_der_x509_certificate(issued.chain[0]).public_key() == key.public_key()
    assert verify(ca, issued.chain).path == "/workload"
