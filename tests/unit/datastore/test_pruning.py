"""What is dropped from a bundle when time goes by."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import Refused
from server.datastore.store import DataStore

TRUST_DOMAIN = TrustDomain("example.org")
START = 1_700_000_000


def authority(not_after: int) -> X509Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(moment(START)).not_valid_after(moment(not_after))
    return X509Authority(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


def moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


async def test_pruning_drops_what_has_ended_and_refuses_to_drop_all() -> None:
    old, new = authority(START + 10), authority(START + 20)
    old_key, new_key, endless = (JwtAuthority(str(end), b"", end) for end in (START + 10, START + 20, 0))
    store = await DataStore.open(":memory:")
    assert await store.prune_bundle(TRUST_DOMAIN, START) is False
    await store.set_bundle(Bundle(TRUST_DOMAIN, (old, new), (old_key, new_key, endless)))

    assert await store.prune_bundle(TRUST_DOMAIN, START + 9) is False
    assert await store.prune_bundle(TRUST_DOMAIN, START + 10) is True
    pruned = Bundle(TRUST_DOMAIN, (new,), (new_key, endless), sequence_number=1)
    assert await store.get_bundle(TRUST_DOMAIN) == pruned

    with pytest.raises(Refused, match="would prune all certificates"):
        await store.prune_bundle(TRUST_DOMAIN, START + 20)
    await store.set_bundle(Bundle(TRUST_DOMAIN, (new,), (old_key,)))
    with pytest.raises(Refused, match="would prune all JWT signing keys"):
        await store.prune_bundle(TRUST_DOMAIN, START + 10)
    await store.close()
