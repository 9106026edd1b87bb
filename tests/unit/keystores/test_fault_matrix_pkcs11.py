"""Each fault in each call of KeyManager "pkcs11": a bounded wait, a typed error or success, recovery, no restart.

Each test is one fault. It meets every call in every function of the module that the call needs; each time the caller
gets an answer, others are served, and nothing is signed wrongly or minted twice. The table at the end of the run says
how many of the tries were survived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import device, manager
from keystores.pkcs11.configuration import TokenConfiguration
from keystores.pkcs11.root import open_root
from operations import logs
from operations.errors import SpireError
from plugins.catalog import PluginContext
from plugins.keyinventory import Inventory, Proving
from plugins.keymanager import KeyManager, KeyType, Sealing
from plugins.rootkey import RootKey
from tests.simulators import faulty_hsm
from tests.simulators.fault_matrix import PROPERTY, Row
from tests.simulators.faulty_hsm import IN_A_SESSION, FaultyHsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.faulty_token import (
    PATIENCE,
    accounted_for,
    keys_path,
    load,
    private_keys,
    recovers,
    signs,
)

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault: what it does, and whether the call does its work before. `once` for one that is over by itself.

    `signing_only`: it means nothing to other calls. `waits`: each try takes a deadline, so that fewer are made.
    """

    name: str
    action: str = "return"
    arguments: Sequence[str | int] = ()
    after: bool = False
    once: bool = True
    signing_only: bool = False
    waits: bool = False


def code(name: str, value: int, *, after: bool = False) -> Kind:
    return Kind(name, arguments=(value,), after=after)


KINDS = [
    code("session closed", faulty_hsm.CKR_SESSION_CLOSED),
    code("session handle invalid", faulty_hsm.CKR_SESSION_HANDLE_INVALID),
    code("device removed", faulty_hsm.CKR_DEVICE_REMOVED),
    code("token not present", faulty_hsm.CKR_TOKEN_NOT_PRESENT),
    code("not initialised", faulty_hsm.CKR_CRYPTOKI_NOT_INITIALIZED),
    code("function failed", faulty_hsm.CKR_FUNCTION_FAILED),
    code("device error", faulty_hsm.CKR_DEVICE_ERROR),
    code("log full", faulty_hsm.CKR_DEVICE_MEMORY),
    code("answer lost", faulty_hsm.CKR_DEVICE_ERROR, after=True),
    Kind("sessions forgotten", "forget"),
    Kind("hang", "hang", once=False, waits=True),
    Kind("hang, work done", "hang", after=True, waits=True),
    Kind("crash", "crash", ("segv",)),
    Kind("abort, work done", "crash", ("abort",), after=True),
    Kind("slow", "sleep", (20_000,), once=False),
    Kind("token pulled out", "pull", once=False),
    Kind("wrong signature", "wrong", signing_only=True),
    Kind("short signature", "truncated", signing_only=True),
    Kind("empty signature", "empty", signing_only=True),
    Kind("former signature", "repeated", once=False, signing_only=True),
    Kind("DER signature", "der", once=False, signing_only=True),
    Kind("another key's handle", "swap", signing_only=True),
]

FUNCTIONS = {
    "sign": ("C_Sign", "C_SignInit"),
    "root": ("C_Sign", "C_SignInit"),
    "generate": ("C_GenerateKeyPair", "C_FindObjectsInit", "C_GetAttributeValue"),
    "inventory": ("C_GetAttributeValue", "C_FindObjectsInit", "C_FindObjects"),
    "prove": ("C_Sign", "C_GetAttributeValue"),
    "seal": ("C_Sign", "C_SignInit", "C_FindObjects"),
    "relabel": ("C_SetAttributeValue",),
    "dispose": ("C_DestroyObject",),
    "open": ("C_Login", "C_OpenSession", "C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_FindObjects"),
    "close": ("C_CloseSession", "C_Finalize"),
}
"""Where a call can meet a fault; that of the first function is tried in any case."""
ROOT_ID = "ff"


@dataclass(slots=True)
class Bench:
    """A key manager whose keys "key" and "other" sign, and a root's key, on a module with faults."""

    hsm: SoftHsm
    faults: FaultyHsm
    row: Row
    kind: Kind
    manager: KeyManager
    root: RootKey
    secret: bytes

    @contextmanager
    def fault(self, functions: str | Sequence[str], skip: int = 0) -> Generator[Callable[[], bool]]:
        """Plant it. What is given tells whether a call has met it."""
        if self.kind.action == "pull":
            with self.faults.token_removed():
                yield lambda: True
            return
        with self.faults.planted(
            functions,
            self.kind.action,
            *self.kind.arguments,
            after=self.kind.after,
            skip=skip,
            times=1 if self.kind.once else 0,
        ) as planted:
            yield lambda: planted.hits > skip

    async def trial(self, call_name: str, functions: str | Sequence[str], call: Call, skip: int = 0) -> None:
        self.row.count(call_name, await self._failure(functions, call, skip))

    async def _failure(self, functions: str | Sequence[str], call: Call, skip: int) -> str | None:
        """What was wrong with this try; None when it was survived."""
        where = f"{functions if isinstance(functions, str) else 'any function'}: "
        minted = self.faults.begun("C_GenerateKeyPair")
        with self.fault(functions, skip) as met:
            asked = asyncio.ensure_future(_outcome(call()))
            await _met(met, asked)
            served = None if functions is IN_A_SESSION else await _outcome(_served(self.manager))
            wrong = await asked or (served and f"another caller: {served}")
            if wrong is None and not met() and functions is not IN_A_SESSION:
                wrong = "it was not met"
        if wrong is None and self.faults.begun("C_GenerateKeyPair") > minted + 1:
            wrong = "a key was generated more than once"
        if wrong is None:
            wrong = await _outcome(recovers(await self.manager.get("other")), 2 * PATIENCE)
        return wrong and where + wrong


async def _outcome(call: Awaitable[object], patience: float = PATIENCE) -> str | None:
    """None for success and for a typed error; else what was wrong."""
    try:
        async with asyncio.timeout(patience):
            await call
    except TimeoutError:
        return f"no answer within {patience:g} s"
    except InvalidSignature:
        return "a wrong signature got out"
    except SpireError as error:
        return None if str(error) and "\n" not in str(error) else f"no clear line: {error!r}"
    except Exception as error:  # noqa: BLE001 - it goes into the table
        return f"no typed error: {error!r}"
    return None


async def _met(met: Callable[[], bool], asked: asyncio.Future[str | None]) -> None:
    """Wait until the call is in its trouble, or through."""
    while not met():
        if (await asyncio.wait({asked}, timeout=0.005))[0]:
            return


async def _served(manager: KeyManager) -> None:
    """Another caller, with another key: answered, at once from memory and in time by the token."""
    async with asyncio.timeout(2):
        await manager.list()
        other = await manager.get("other")
    try:
        await signs(other)
    except TemporarilyUnavailable:
        return


@asynccontextmanager
async def bench(hsm: SoftHsm, faults: FaultyHsm, kind: Kind) -> AsyncGenerator[Bench]:
    hsm.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "root", "--id", ROOT_ID)
    settings = TokenConfiguration(module_path=faults.module_path, token_label=hsm.label, pin_file=str(hsm.pin_file))
    context = PluginContext(trust_domain="example.org", data_dir=str(hsm.folder), log=logs.get("pkcs11"))
    keys = await load(hsm, faults, grace="0s")
    root = await open_root(settings, "root", context)
    try:
        for key_id in ("key", "other"):
            await keys.generate(key_id, KeyType.EC_P256)
        assert isinstance(keys, Sealing)
        secret = await keys.sealing_secret("one")
        yield Bench(hsm, faults, Row("a PKCS#11 module", kind.name), kind, keys, root, secret)
    finally:
        faults.lift_all()
        await root.close()
        await keys.close()


async def every_call(made: Bench) -> None:
    tried = {call: functions[:1] if made.kind.waits else functions for call, functions in FUNCTIONS.items()}
    for function in tried["sign"]:
        await made.trial("sign", function, lambda: _sign(made, 1))
    await made.trial("batch", "C_Sign", lambda: _sign(made, 12), skip=5)
    for function in tried["root"]:
        await made.trial("root", function, lambda: _certify(made))
    for function in tried["seal"]:
        await made.trial("seal", function, lambda: _seal(made))
    if not made.kind.signing_only:
        await every_other_call(made, tried)


async def every_other_call(made: Bench, tried: Mapping[str, Sequence[str]]) -> None:
    number = count(1)
    await made.trial("list", IN_A_SESSION, made.manager.list)
    await made.trial("get", IN_A_SESSION, lambda: made.manager.get("key"))
    assert isinstance(made.manager, Inventory)
    assert isinstance(made.manager, Proving)
    for function in tried["inventory"]:
        await made.trial("inventory", function, made.manager.inventory)
    for function in tried["prove"]:
        await made.trial("prove", function, lambda: _prove(made))
    for name in ("generate", "relabel", "dispose"):
        for function in tried[name]:
            await made.trial(name, function, lambda: made.manager.generate("key", KeyType.EC_P256))
    for function in tried["open"]:
        await made.trial("open", function, lambda: _start(made, f"opened-{next(number)}"))
    for function in tried["close"]:
        closing = await load(made.hsm, made.faults, f"closing-{next(number)}")
        await made.trial("close", function, closing.close)


async def _sign(made: Bench, amount: int) -> None:
    await signs(await made.manager.get("key"), amount)


async def _certify(made: Bench) -> None:
    signature = await made.root.sign(b"certificate")
    public_key = serialization.load_der_public_key(made.root.public_key)
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    public_key.verify(signature, b"certificate", ec.ECDSA(hashes.SHA256()))


async def _seal(made: Bench) -> None:
    """The secret is the same one each time, or none."""
    assert isinstance(made.manager, Sealing)
    assert await made.manager.sealing_secret("one") == made.secret


async def _prove(made: Bench) -> None:
    assert isinstance(made.manager, Proving)
    proof = await made.manager.prove("key")
    assert proof.stands or made.kind.action != "return"


async def _start(made: Bench, name: str) -> None:
    opened = await load(made.hsm, made.faults, name)
    await opened.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_call_survives(
    hsm: SoftHsm,
    faults: FaultyHsm,
    kind: Kind,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind.waits:
        for module, name in ((device, "PATIENCE"), (device, "PROBE_PATIENCE"), (manager, "GENERATION_PATIENCE")):
            monkeypatch.setattr(module, name, 1.5)
    async with bench(hsm, faults, kind) as made:
        await every_call(made)
        record_property(PROPERTY, made.row.report())
    assert made.row.failures == []

    # What a lost answer left behind is found by the next start, and nothing else is there.
    again = await load(hsm, faults, grace="24h")
    try:
        for key in await again.list():
            await signs(key)
        assert {key.id for key in await again.list()} == {"key", "other"}
        assert private_keys(hsm) - {ROOT_ID} == accounted_for(hsm)
        assert len(accounted_for(hsm)) <= 8
        assert keys_path(hsm).stat().st_mode & 0o777 == 0o600
    finally:
        await again.close()
