"""A verified chain in words: names as Go prints them, which tools and people compare."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from identity.described import describe, subject_text
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import Refused
from tests.simulators.pki import NOW, Authority

TRUST_DOMAIN = TrustDomain("example.org")
C, O, CN = NameOID.COUNTRY_NAME, NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME  # noqa: E741


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ([(C, "US"), (O, "SPIRE")], "O=SPIRE,C=US"),
        (
            [(CN, "n"), (O, "A"), (O, "B"), (C, "US"), (NameOID.SERIAL_NUMBER, "12")],
            "SERIALNUMBER=12,CN=n,O=A+O=B,C=US",
        ),
        (
            [
                (O, 'a,b+c"d\\e<f>g;h'),
                (NameOID.ORGANIZATIONAL_UNIT_NAME, " lead"),
                (NameOID.LOCALITY_NAME, "trail "),
                (NameOID.STATE_OR_PROVINCE_NAME, "#hash"),
            ],
            r"OU=\ lead,O=a\,b\+c\"d\\e\<f\>g\;h,L=trail\ ,ST=\#hash",
        ),
        ([(CN, "first"), (CN, "second")], "CN=second"),
        ([(C, "US"), (ObjectIdentifier("2.5.4.45"), "abc")], "C=US,2.5.4.45=#0c03616263"),
        ([(O, " ")], "O=\\ "),
        ([], ""),
    ],
)
def test_names(attributes: Sequence[tuple[ObjectIdentifier, str]], text: str) -> None:
    assert subject_text(x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])) == text


def test_a_chain_up_to_its_root() -> None:
    root = Authority.root()
    middle = root.sub()
    leaf, above, last = describe([middle.sign(), middle.der], {TRUST_DOMAIN: [root.der]}, NOW)
    assert leaf.spiffe_id == SpiffeId(TRUST_DOMAIN, "/workload")
    assert leaf.expires_at == int(datetime(2026, 1, 1, 1, tzinfo=UTC).timestamp())
    assert (above.subject, last.subject) == ("CN=intermediate", "CN=root")


def test_a_chain_that_leads_nowhere() -> None:
    with pytest.raises(Refused):
        describe([Authority.root().sign()], {TRUST_DOMAIN: [Authority.root().der]}, NOW)
