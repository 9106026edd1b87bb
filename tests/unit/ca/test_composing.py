"""Credential composers: what they change, what they leave alone, and what they may not do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from governance.uniqueid import UniqueId
from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from keystores.memory import MemoryKeyManager
from operations.errors import Refused, TemporarilyUnavailable, Unsupported
from plugins.credentialcomposer import (
    AttributeTypeAndValue,
    CredentialComposer,
    DistinguishedName,
    JwtSvidAttributes,
    X509CaAttributes,
    X509Extension,
    X509SvidAttributes,
)
from server.ca import checks, names
from server.ca.certificate_authority import CaSettings, CertificateAuthority
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.pki import NOW, csr, ec_key, key_usage, spki

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
MARK = X509Extension("1.3.6.1.4.1.55555.1", bytes.fromhex("0c046d61726b"))
WORKLOAD = SpiffeId(TD, "/workload")

Svid = Callable[[X509SvidAttributes], X509SvidAttributes]
Claims = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    spiffe_id: str = str(WORKLOAD)
    dns_names: Sequence[str] = ("a.example.org",)
    x509_svid_ttl: int = 0


class Composer:
    """Does what the test says, and notes what it was asked."""

    name = "test"

    def __init__(
        self,
        svid: Svid = lambda attributes: attributes,
        ca: Callable[[X509CaAttributes], X509CaAttributes] = lambda attributes: attributes,
        claims: Claims = lambda claims: claims,
    ) -> None:
        self._svid, self._ca, self._claims = svid, ca, claims
        self.asked: list[tuple[str, str]] = []

    async def server_x509_ca(self, attributes: X509CaAttributes) -> X509CaAttributes:
        self.asked.append(("ca", ""))
        return self._ca(attributes)

    async def server_x509_svid(self, attributes: X509SvidAttributes) -> X509SvidAttributes:
        self.asked.append(("server", ""))
        return self._svid(attributes)

    async def agent_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        self.asked.append(("agent", spiffe_id))
        return self._svid(attributes)

    async def workload_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        self.asked.append(("workload", spiffe_id))
        return self._svid(attributes)

    async def workload_jwt_svid(self, spiffe_id: str, attributes: JwtSvidAttributes) -> JwtSvidAttributes:
        self.asked.append(("jwt", spiffe_id))
        return JwtSvidAttributes(self._claims(attributes.claims))


class Server:
    def __init__(self, *composers: CredentialComposer) -> None:
        self.store = MemoryAuthorityStore()
        self.authority = CertificateAuthority(
            CaSettings(trust_domain=TD), MemoryKeyManager(), self.store, composers=composers, now=lambda: SECONDS
        )

    async def workload(self) -> x509.Certificate:
        await self.authority.start()
        [issued] = await self.authority.issue_x509([checks.approve_workload(csr(ec_key()), Entry(), TD)])
        assert x509svid.verify(issued.chain, {TD: self.store.roots}, NOW) == WORKLOAD
        return x509.load_der_x509_certificate(issued.chain[0])

    async def token(self) -> dict[str, Any]:
        await self.authority.start()
        issued = await self.authority.issue_jwt(checks.approve_jwt(WORKLOAD, ["a"]))
        claims: dict[str, Any] = jwt.decode(issued.token, options={"verify_signature": False})
        assert (claims["iat"], claims["exp"]) == (issued.issued_at, issued.expires_at)
        return claims


async def test_uniqueid_is_in_workloads_subjects_only() -> None:
    server = Server(UniqueId())
    leaf = await server.workload()
    assert [(each.oid.dotted_string, each.value) for each in leaf.subject] == [
        ("2.5.4.6", "US"),
        ("2.5.4.10", "SPIRE"),
        ("2.5.4.3", "a.example.org"),
        ("2.5.4.45", "9329e28c9448787df0fcb3c655605e51"),
    ]
    agent = SpiffeId(TD, "/spire/agent/x")
    others = [checks.approve_agent(csr(ec_key()), agent), checks.approve_server(spki(ec_key()), TD)]
    for issued in await server.authority.issue_x509(others):
        subject = x509.load_der_x509_certificate(issued.chain[0]).subject
        assert not subject.get_attributes_for_oid(NameOID.X500_UNIQUE_IDENTIFIER)
    assert (await server.token())["sub"] == str(WORKLOAD)


async def test_uniqueid_replaces_one_that_is_there() -> None:
    attributes = X509SvidAttributes(DistinguishedName(extra_names=(AttributeTypeAndValue("2.5.4.45", "old"),)))
    composed = await UniqueId().workload_x509_svid(str(WORKLOAD), b"", attributes)
    assert len(composed.subject.extra_names) == 1
    assert composed.subject.extra_names[0].value != "old"


async def test_each_credential_has_its_hook() -> None:
    composer = Composer()
    server = Server(composer)
    await server.workload()
    agent = SpiffeId(TD, "/spire/agent/x")
    await server.authority.issue_x509(
        [checks.approve_agent(csr(ec_key()), agent), checks.approve_server(spki(ec_key()), TD)]
    )
    await server.token()
    await server.authority.issue_downstream(checks.approve_downstream(csr(ec_key())))
    assert composer.asked == [
        ("ca", ""),
        ("workload", str(WORKLOAD)),
        ("agent", str(agent)),
        ("server", ""),
        ("jwt", str(WORKLOAD)),
        ("ca", ""),
    ]


async def test_composers_are_asked_in_turn() -> None:
    def named(name: str) -> Svid:
        return lambda each: replace(each, dns_names=(*each.dns_names, name))

    leaf = await Server(Composer(named("b.org")), UniqueId(), Composer(named("c.org"))).workload()
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["a.example.org", "b.org", "c.org"]


async def test_further_extensions_and_names_come_last() -> None:
    extra = (AttributeTypeAndValue("0.9.2342.19200300.100.1.1", "me"), AttributeTypeAndValue("2.5.4.10", "Acme"))
    leaf = await Server(
        Composer(
            lambda each: replace(
                each, subject=replace(each.subject, extra_names=extra), extra_extensions=(MARK,), dns_names=()
            )
        )
    ).workload()
    assert leaf.subject.rfc4514_string() == "O=Acme,UID=me,CN=a.example.org,C=US"
    last = leaf.extensions[-1]
    assert (last.oid.dotted_string, last.critical) == (MARK.oid, False)
    assert isinstance(last.value, x509.UnrecognizedExtension)
    assert last.value.value == MARK.value
    assert len(leaf.extensions) == 7


async def test_an_extension_may_take_a_usual_ones_place() -> None:
    names_ = [x509.RFC822Name("me@example.org"), x509.UniformResourceIdentifier(str(WORKLOAD))]
    value = x509.SubjectAlternativeName(names_).public_bytes()
    san = X509Extension("2.5.29.17", value, critical=True)
    leaf = await Server(Composer(lambda each: replace(each, extra_extensions=(san,)))).workload()
    assert len(leaf.extensions) == 6
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert found.critical
    assert list(found.value) == names_


def extension(oid: str, value: x509.ExtensionType) -> Svid:
    return lambda each: replace(each, extra_extensions=(X509Extension(oid, value.public_bytes()),))


def alternative(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


MALICE: dict[str, tuple[Svid, str]] = {
    "a CA": (extension("2.5.29.19", x509.BasicConstraints(ca=True, path_length=None)), "cA constraint must not be set"),
    "certificate signing": (
        extension("2.5.29.15", key_usage("key_cert_sign", "digital_signature")),
        "only digitalSignature, keyEncipherment, and keyAgreement key usage can be set",
    ),
    "no signing": (extension("2.5.29.15", key_usage("key_agreement")), "digitalSignature key usage must be set"),
    "client only": (
        extension("2.5.29.37", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
        "missing serverAuth extended key usage",
    ),
    "neither": (
        extension("2.5.29.37", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])),
        "missing both serverAuth and clientAuth",
    ),
    "another ID": (extension("2.5.29.17", alternative("spiffe://example.org/admin")), "expected URI SAN"),
    "two IDs": (extension("2.5.29.17", alternative(str(WORKLOAD), "spiffe://example.org/b")), "expected URI SAN"),
    "no ID": (extension("2.5.29.17", x509.SubjectAlternativeName([x509.DNSName("a")])), "missing URI SAN"),
    "broken": (lambda each: replace(each, extra_extensions=(X509Extension("2.5.29.17", b"x"),)), "not a well-formed"),
    "twice": (lambda each: replace(each, extra_extensions=(MARK, MARK)), "the same object identifier"),
    "no oid": (lambda each: replace(each, extra_extensions=(X509Extension("one", b""),)), "no object identifier"),
    "bad name": (lambda each: replace(each, dns_names=("a..b",)), "invalid X509SVID attributes"),
    "long country": (
        lambda each: replace(each, subject=replace(each.subject, country=("USA",))),
        "invalid X509SVID attributes",
    ),
}


@pytest.mark.parametrize(("change", "reason"), MALICE.values(), ids=MALICE)
async def test_no_composer_breaks_the_standard(change: Svid, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        await Server(Composer(change)).workload()


async def test_a_composer_may_leave_credentials_alone_or_fail() -> None:
    class Reluctant(Composer):
        failing = False

        async def workload_x509_svid(
            self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
        ) -> X509SvidAttributes:
            if self.failing:
                raise TemporarilyUnavailable("the plugin is away")
            raise Unsupported("not implemented")

    reluctant = Reluctant()
    server = Server(reluctant, UniqueId())
    assert (await server.workload()).subject.get_attributes_for_oid(NameOID.X500_UNIQUE_IDENTIFIER)
    reluctant.failing = True
    with pytest.raises(TemporarilyUnavailable, match="the plugin is away"):
        await server.workload()


async def test_the_servers_own_authority_is_composed() -> None:
    def change(attributes: X509CaAttributes) -> X509CaAttributes:
        subject = replace(attributes.subject, organization=("Acme",))
        return X509CaAttributes(subject, ("1.3.6.1.4.1.55555.2",), (MARK,))

    server = Server(Composer(ca=change))
    leaf = await server.workload()
    root = x509.load_der_x509_certificate(server.store.roots[0])
    assert leaf.issuer == root.subject == root.issuer
    assert [each.value for each in root.subject] == ["US", "Acme", str(root.serial_number)]
    policies = root.extensions.get_extension_for_class(x509.CertificatePolicies).value
    assert [each.policy_identifier.dotted_string for each in policies] == ["1.3.6.1.4.1.55555.2"]
    assert root.extensions[-1].oid.dotted_string == MARK.oid


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (X509CaAttributes(DistinguishedName(), ("x",)), "invalid X509CA attributes"),
        (X509CaAttributes(DistinguishedName(country=("USA",))), "invalid X509CA attributes"),
        (
            X509CaAttributes(
                DistinguishedName(),
                (),
                (X509Extension("2.5.29.19", x509.BasicConstraints(ca=False, path_length=None).public_bytes()),),
            ),
            "cA constraint is not set",
        ),
    ],
)
async def test_an_authority_that_is_none_is_not_published(attributes: X509CaAttributes, reason: str) -> None:
    server = Server(Composer(ca=lambda _: attributes))
    with pytest.raises(Refused, match=reason):
        await server.authority.start()
    assert server.store.roots == []


async def test_claims_are_composed() -> None:
    # Numbers that went through a google.protobuf.Struct are floating-point.
    server = Server(
        Composer(claims=lambda claims: {**claims, "team": ["a"], "exp": float(claims["exp"]), "iat": float(SECONDS)})
    )
    claims = await server.token()
    assert claims["team"] == ["a"]
    assert (type(claims["exp"]), type(claims["iat"])) == (int, int)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sub": "spiffe://example.org/admin"}, '"sub" claim'),
        ({"sub": None}, '"sub" claim'),
        ({"exp": None}, '"exp" claim: required'),
        ({"exp": "soon"}, '"exp" claim: required'),
        ({"exp": SECONDS}, "already expired"),
        ({"iat": None}, '"iat" claim: required'),
        ({"nbf": SECONDS + 60}, "not yet valid"),
        ({"aud": []}, '"aud" claim: required'),
        ({"aud": ["a", ""]}, "contains empty value"),
        ({"aud": 1}, '"aud" claim: required'),
        ({"x": object()}, "no JSON"),
    ],
)
async def test_claims_that_are_no_jwt_svid(change: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        await Server(Composer(claims=lambda claims: {**claims, **change})).token()


def test_names_go_out_and_come_back() -> None:
    name = DistinguishedName(
        country=("DE", "FR"),
        organization=("One", "Two"),
        organizational_unit=("Unit",),
        locality=("Here",),
        province=("There",),
        street_address=("Street 1",),
        postal_code=("12345",),
        serial_number="7",
        common_name="me",
    )
    assert names.to_distinguished_name(names.from_distinguished_name(name)) == name
    assert names.from_distinguished_name(DistinguishedName()) == x509.Name([])
