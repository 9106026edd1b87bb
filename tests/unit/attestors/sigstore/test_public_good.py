"""What the public Sigstore made: a certificate of Fulcio's with its SCT, an entry of Rekor's, an attestation.

public_good.json says where they are from. Each check holds, and falls with any change.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from attestors.sigstore import certificates, entries, payloads
from attestors.sigstore.entries import InclusionProof, LogEntry
from attestors.sigstore.identities import Identities
from attestors.sigstore.trust import Authority, TrustRoot, logs_of, read_certificates, read_key
from operations.documents import decode
from operations.errors import Refused

VECTOR = json.loads(Path(__file__).with_name("public_good.json").read_text())
TRUST = TrustRoot(
    fulcio=(Authority(read_certificates(VECTOR["fulcio"].encode())),),
    rekor=logs_of([read_key(VECTOR["rekor"].encode())]),
    ct=logs_of([read_key(VECTOR["ct"].encode())]),
)
CERTIFICATE = x509.load_der_x509_certificate(base64.b64decode(VECTOR["certificate"]))
ENTRY = decode(json.dumps(VECTOR["entry"]), LogEntry)
PROOF = decode(json.dumps(VECTOR["proof"]), InclusionProof)
ENVELOPE = json.dumps(VECTOR["envelope"]).encode()


def test_the_certificate_is_trusted_when_it_was_used_and_not_a_day_later() -> None:
    path = certificates.require_trusted(CERTIFICATE, (), TRUST, ENTRY.time)
    assert len(path) == 3
    with pytest.raises(Refused, match="expired"):
        certificates.require_trusted(CERTIFICATE, (), TRUST, ENTRY.time + timedelta(days=1))


def test_the_certificate_is_in_the_ct_log() -> None:
    path = certificates.require_trusted(CERTIFICATE, (), TRUST, ENTRY.time)
    certificates.require_logged(path, TRUST.ct_keys(ENTRY.time))
    with pytest.raises(Refused, match="CT log that the certificate is in is not known"):
        certificates.require_logged(path, TRUST.rekor_keys(ENTRY.time))
    with pytest.raises(Refused, match="SCT is not signed by the CT log"):
        certificates.require_logged((path[0], path[2]), TRUST.ct_keys(ENTRY.time))


def test_who_signed() -> None:
    workflow = "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main"
    assert certificates.names(CERTIFICATE) == (workflow,)
    assert certificates.issuer(CERTIFICATE) == "https://token.actions.githubusercontent.com"
    Identities({"https://token.actions.githubusercontent.com": (workflow,)}).require(CERTIFICATE)


def test_the_log_promised_the_entry_and_has_it() -> None:
    entries.require_promised(ENTRY, VECTOR["promise"], TRUST.rekor_keys(ENTRY.time))
    entries.require_included(ENTRY, PROOF)
    later = msgspec.structs.replace(ENTRY, integrated_time=ENTRY.integrated_time + 1)
    with pytest.raises(Refused, match="unable to verify SET"):
        entries.require_promised(later, VECTOR["promise"], TRUST.rekor_keys(ENTRY.time))


def test_the_entry_is_of_this_certificate() -> None:
    claim = entries.claim_of(ENTRY)
    entries.require_same(ENTRY, ("intoto",), claim.digest, None, CERTIFICATE)


def test_the_attestation_is_signed_and_of_something_else_than_an_image() -> None:
    key = certificates.key_of(CERTIFICATE)
    with pytest.raises(Refused, match="no matching subject digest found"):
        payloads.require_attestation(ENVELOPE, key, "sha256:" + "ab" * 32)
    changed = json.dumps({**VECTOR["envelope"], "payload": base64.b64encode(b"{}").decode()}).encode()
    with pytest.raises(Refused, match="not signed by its certificate's key"):
        payloads.require_attestation(changed, key, "sha256:" + "ab" * 32)
