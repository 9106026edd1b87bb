from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID

from agent.csr import agent_request, workload_request
from keystores.memory import MemoryKeyManager
from plugins.keymanager import KeyType

ID = "spiffe://example.org/" + "long/" * 60 + "path"


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_workload_request(key_type: KeyType) -> None:
    made = workload_request(key_type, ID)
    request = x509.load_der_x509_csr(made.request)
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "O=SPIRE,C=US"
    names = request.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [ID]
    private = serialization.load_der_private_key(made.private_key, None)
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    assert private.public_key().public_bytes(*encoding) == request.public_key().public_bytes(*encoding)


@pytest.mark.parametrize("key_type", list(KeyType))
async def test_agent_request_is_signed_by_the_key_manager(key_type: KeyType) -> None:
    key = await MemoryKeyManager().generate("agent-svid-A", key_type)
    request = x509.load_der_x509_csr(await agent_request(key))
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "O=SPIRE,C=US"
    assert not list(request.extensions)


def test_each_workload_key_is_new() -> None:
    assert workload_request(KeyType.EC_P256, ID).private_key != workload_request(KeyType.EC_P256, ID).private_key
