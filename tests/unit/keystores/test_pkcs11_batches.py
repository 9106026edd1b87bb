"""What goes to a token together, and what over several sessions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keystores import public_keys
from keystores.errors import PermanentlyUnusable, TemporarilyUnavailable
from keystores.pkcs11 import batches, encoding
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.configuration import TokenSpec
from keystores.pkcs11.device import Device
from keystores.pkcs11.lane import Lane
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.protocol import Generate, Mechanism, PublicParts, Request, Sign, TokenName
from operations import logs
from plugins.keymanager import KeyType
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm

CKA_ID = b"twenty bytes of name"
PAYLOADS = [hashlib.sha256(b"%d" % number).digest() for number in range(200)]


@pytest.fixture(params=[1, 3])
async def device(hsm: SoftHsm, request: pytest.FixtureRequest) -> AsyncIterator[Device]:
    spec = TokenSpec(softhsm.MODULE, TokenName("the test's", label=hsm.label), sessions=request.param)
    device = Device(spec, Pin(hsm.pin_file, hsm.folder / "refused"), logs.get("t"))
    await device.open()
    yield device
    await device.close()


@pytest.fixture
async def verify(device: Device) -> Callable[[bytes, bytes], None]:
    """Makes the key. Raises InvalidSignature for another payload's signature."""
    wanted = Generate(CKA_ID, "ns/key", "ec-p256", encoding.EC_PARAMETERS[KeyType.EC_P256], None)
    der = encoding.public_key(await device.call(wanted, PublicParts, rw=True))
    assert der is not None
    key = public_keys.from_der(der)
    assert isinstance(key, ec.EllipticCurvePublicKey)

    def check(payload: bytes, raw: bytes) -> None:
        signature = encoding.ecdsa_signature(raw, KeyType.EC_P256)
        key.verify(signature, payload, ec.ECDSA(Prehashed(hashes.SHA256())))

    return check


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many payloads each request to the worker had."""
    asked: list[int] = []
    honest = Lane.ask

    def counting(self: Lane, request: Request, *arguments: Any) -> asyncio.Future[Any]:
        if isinstance(request, Sign):
            asked.append(len(request.payloads))
        return honest(self, request, *arguments)

    monkeypatch.setattr(Lane, "ask", counting)
    return asked


Verify = Callable[[bytes, bytes], None]


async def test_those_who_wait_go_out_together_and_get_their_own(
    device: Device, verify: Verify, sizes: list[int]
) -> None:
    signer = Signer(device)
    signed = await asyncio.gather(*(signer.sign(CKA_ID, Mechanism.ECDSA, [payload]) for payload in PAYLOADS))
    for payload, [raw] in zip(PAYLOADS, signed, strict=True):
        verify(payload, raw)
    assert sum(sizes) == len(PAYLOADS)
    assert len(sizes) <= device.sessions + 1


async def test_a_large_batch_is_spread_over_the_sessions_in_order(
    device: Device, verify: Verify, sizes: list[int]
) -> None:
    signed = await Signer(device).sign(CKA_ID, Mechanism.ECDSA, PAYLOADS)
    for payload, raw in zip(PAYLOADS, signed, strict=True):
        verify(payload, raw)
    assert len(sizes) == device.sessions


async def test_those_who_gave_up_are_not_signed_for(device: Device, verify: Verify, sizes: list[int]) -> None:
    signer = Signer(device)
    calls = [asyncio.create_task(signer.sign(CKA_ID, Mechanism.ECDSA, [payload])) for payload in PAYLOADS[:50]]
    await asyncio.sleep(0)
    gone = calls[device.sessions :: 2]
    for call in gone:
        call.cancel()
    await asyncio.wait(calls)
    for payload, call in zip(PAYLOADS, calls, strict=False):
        if not call.cancelled():
            verify(payload, call.result()[0])
    assert sum(call.cancelled() for call in calls) == len(gone)
    assert sum(sizes) == len(calls) - len(gone)


async def test_all_who_wait_hear_of_a_failure(device: Device) -> None:
    """There is no such key."""
    signer = Signer(device)
    calls = (signer.sign(b"nobody's", Mechanism.ECDSA, PAYLOADS[:1]) for _ in range(20))
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, PermanentlyUnusable)
    await device.close()
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await signer.sign(CKA_ID, Mechanism.ECDSA, PAYLOADS[:1])


async def test_gathering_has_a_limit(
    device: Device, verify: Verify, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "GATHERED", 10)
    signer = Signer(device)
    signed = await asyncio.gather(*(signer.sign(CKA_ID, Mechanism.ECDSA, [payload]) for payload in PAYLOADS))
    for payload, [raw] in zip(PAYLOADS, signed, strict=True):
        verify(payload, raw)
    assert max(sizes) <= 10
