"""Credential composers of others: what they may change, and what is not signed."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509

from identity.spiffeid import SpiffeId, TrustDomain
from operations import errors
from plugins.credentialcomposer import (
    AttributeTypeAndValue,
    DistinguishedName,
    JwtSvidAttributes,
    X509CaAttributes,
    X509Extension,
    X509SvidAttributes,
)
from plugins.external import credentialcomposer, process
from server.ca.composing import Composers
from tests.unit.plugins.external.conftest import Load
from transport.status import RpcError

TD_ID = SpiffeId(TrustDomain("example.org"), "/w")
ID = "spiffe://example.org/w"
SUBJECT = DistinguishedName(
    country=("US",),
    organization=("SPIRE", "Acme"),
    common_name="w",
    serial_number="7",
    extra_names=(AttributeTypeAndValue("2.5.4.45", "unique"),),
)
EXTENSION = X509Extension("1.2.3.4", b"\x05\x00")
CLAIMS = {"sub": ID, "aud": ("a", "b"), "exp": 1_900_000_000, "iat": 1_800_000_000, "deep": {"a": [1, None, "x"]}}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)


async def test_every_kind_is_composed(load: Load) -> None:
    plugin = await load("CredentialComposer")
    ca = await plugin.server_x509_ca(X509CaAttributes(SUBJECT, ("2.5.29.32.0",), (EXTENSION,)))
    assert ca.subject.organizational_unit == ("composed",)
    assert (ca.subject.country, ca.subject.extra_names) == (SUBJECT.country, SUBJECT.extra_names)
    assert ca.policy_identifiers == ("2.5.29.32.0", "1.2.3")
    assert ca.extra_extensions == (EXTENSION,)
    for each in (
        plugin.server_x509_svid(X509SvidAttributes(SUBJECT, ("a.example.org",))),
        plugin.agent_x509_svid(ID, b"key", X509SvidAttributes(SUBJECT, ("a.example.org",))),
        plugin.workload_x509_svid(ID, b"key", X509SvidAttributes(SUBJECT, ("a.example.org",))),
    ):
        found = await each
        assert found == X509SvidAttributes(SUBJECT, ("a.example.org", "composed.example.org"), (EXTENSION,))


async def test_claims_come_back_as_they_went(load: Load) -> None:
    plugin = await load("CredentialComposer")
    found = await plugin.workload_jwt_svid(ID, JwtSvidAttributes(CLAIMS))
    assert found.claims == {**CLAIMS, "aud": ["a", "b"], "composed": True}
    assert isinstance(await _expiry(plugin), int)


async def _expiry(plugin: Any) -> object:
    return (await Composers([plugin]).jwt_svid(TD_ID, CLAIMS))["exp"]


async def test_what_it_leaves_alone(load: Load) -> None:
    composers = Composers([await load("CredentialComposer", "leaves-alone")])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    assert (await composers.x509_ca(name)).subject == name
    plugin = await load("CredentialComposer", "no-attributes")
    attributes = X509SvidAttributes(SUBJECT)
    assert await plugin.workload_x509_svid(ID, b"key", attributes) == attributes


async def test_what_is_no_attribute(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = await load("CredentialComposer", "no-subject", "nan-claim", "bad-oid", "hangs-in-compose")
    with pytest.raises(RpcError, match=r"plugin returned invalid X509SVID attributes: subject: cannot be empty"):
        await plugin.server_x509_svid(X509SvidAttributes(SUBJECT))
    with pytest.raises(RpcError, match=r"plugin returned invalid JWTSVID attributes: claims"):
        await plugin.workload_jwt_svid(ID, JwtSvidAttributes(CLAIMS))
    with pytest.raises(errors.Refused, match="invalid X509CA attributes"):
        await Composers([plugin]).x509_ca(x509.Name([]))
    monkeypatch.setattr(credentialcomposer, "TIMEOUT", 0.5)
    with pytest.raises(RpcError, match="DeadlineExceeded"):
        await plugin.workload_x509_svid(ID, b"key", X509SvidAttributes(SUBJECT))
