"""A key store as a plugin: whose it is, its configuration, its calls."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from generated.spire.plugin.server.keymanager.v1 import keymanager_pb2 as api
from generated.spire.service.common.config.v1 import config_pb2
from keystores import memory
from keystores.errors import InvalidArgument, NotFound, TemporarilyUnavailable
from keystores.served import KeyManagerPlugin, Role
from operations.errors import ConfigurationError
from plugins.keymanager import Key, KeyType
from tests.simulators.served import Store
from transport.errors import status_of
from transport.peer import Peer
from transport.status import Code, RpcError

SERVER = "spire.plugin.server.keymanager.v1.KeyManager"
AGENT = "spire.plugin.agent.keymanager.v1.KeyManager"
CONFIG = "spire.service.common.config.v1.Config"
METRICS = "spire.hostservice.common.metrics.v1.Metrics"
AGENT_STORE = "spire.hostservice.server.agentstore.v1.AgentStore"
DIGEST = hashlib.sha256(b"message").digest()
NOBODY: Any = Peer("test"), None


def configuration(text: str, trust_domain: str = "example.org") -> config_pb2.ConfigureRequest:
    core = config_pb2.CoreConfiguration(trust_domain=trust_domain)
    return config_pb2.ConfigureRequest(core_configuration=core, hcl_configuration=text)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def plugin(store: Store) -> KeyManagerPlugin:
    return KeyManagerPlugin(store)


async def configure(plugin: KeyManagerPlugin, text: str, trust_domain: str = "example.org") -> None:
    await plugin.configure(configuration(text, trust_domain), *NOBODY)


async def generate(plugin: KeyManagerPlugin, key_id: str = "x509-CA-A") -> api.PublicKey:
    request = api.GenerateKeyRequest(key_id=key_id, key_type=api.EC_P256)
    return (await plugin.generate_key(request, *NOBODY)).public_key


def request(**fields: Any) -> api.SignDataRequest:
    given: dict[str, Any] = {"key_id": "x509-CA-A", "data": DIGEST, **fields}
    return api.SignDataRequest(**given)


async def ids(plugin: KeyManagerPlugin) -> Sequence[str]:
    return [key.id for key in (await plugin.get_public_keys(api.GetPublicKeysRequest(), *NOBODY)).public_keys]


@pytest.mark.parametrize(
    ("offered", "role", "names"),
    [
        ([AGENT_STORE, METRICS], Role.SERVER, [SERVER, CONFIG]),
        ([METRICS], Role.AGENT, [SERVER, AGENT, CONFIG]),
        ([], Role.SERVER, [SERVER, AGENT, CONFIG]),
    ],
    ids=["server", "agent", "no SPIRE"],
)
async def test_whose_keys_they_are_is_known_by_what_the_host_offers(
    plugin: KeyManagerPlugin, store: Store, offered: list[str], role: Role, names: list[str]
) -> None:
    assert plugin.introduce(offered) == names
    assert [service.full_name for service, _ in plugin.services()] == [SERVER, AGENT, CONFIG]
    await configure(plugin, "")
    assert store.opened == [("good", "example.org", role)]


async def test_calls_before_the_configuration_are_refused(plugin: KeyManagerPlugin) -> None:
    with pytest.raises(RpcError, match="not configured") as error:
        await ids(plugin)
    assert error.value.code is Code.FAILED_PRECONDITION


async def test_all_faults_of_a_configuration_are_in_one_line(plugin: KeyManagerPlugin) -> None:
    text = "devise = 1\ncolour = 2"
    with pytest.raises(ConfigurationError) as error:
        await configure(plugin, text)
    status = status_of(error.value)
    assert status.code is Code.INVALID_ARGUMENT
    assert status.message == (
        'plugin_data:1: unknown key "devise" in simulated: did you mean "device"?; '
        'plugin_data:2: unknown key "colour" in simulated'
    )
    found = await plugin.validate(config_pb2.ValidateRequest(hcl_configuration=text), *NOBODY)
    assert (found.valid, len(found.notes)) == (False, 2)


async def test_validating_asks_no_device(plugin: KeyManagerPlugin, store: Store) -> None:
    good = await plugin.validate(config_pb2.ValidateRequest(hcl_configuration='device = "absent"'), *NOBODY)
    bad = await plugin.validate(config_pb2.ValidateRequest(hcl_configuration='device = "impossible"'), *NOBODY)
    assert (good.valid, bad.valid, list(bad.notes)) == (True, False, ["device: there is no such device"])
    assert store.opened == []


async def test_a_configuration_that_has_not_changed_changes_nothing(plugin: KeyManagerPlugin, store: Store) -> None:
    await configure(plugin, "")
    await generate(plugin)
    await configure(plugin, "")
    assert await ids(plugin) == ["x509-CA-A"]
    assert len(store.opened) == 1


async def test_a_new_configuration_is_put_in_force(plugin: KeyManagerPlugin, store: Store) -> None:
    await configure(plugin, "")
    await generate(plugin)
    await configure(plugin, 'device = "other"')
    await configure(plugin, 'device = "other"', "example.com")
    assert await ids(plugin) == []  # another key manager, in memory
    assert [opened[:2] for opened in store.opened] == [
        ("good", "example.org"),
        ("other", "example.org"),
        ("other", "example.com"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("devise = 1", ConfigurationError),
        ('device = "impossible"', ConfigurationError),
        ('device = "absent"', TemporarilyUnavailable),
    ],
    ids=["misspelt", "impossible", "absent"],
)
async def test_after_a_configuration_that_cannot_be_used_the_old_one_is_in_force(
    plugin: KeyManagerPlugin, text: str, expected: type[Exception]
) -> None:
    await configure(plugin, "")
    with pytest.raises(expected):
        await configure(plugin, text)
    await generate(plugin)
    assert await ids(plugin) == ["x509-CA-A"]


async def test_a_call_that_runs_is_ended_before_its_key_store_is_closed(
    plugin: KeyManagerPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await configure(plugin, "")
    begun, go_on = asyncio.Event(), asyncio.Event()
    made = memory.MemoryKeyManager.generate

    async def slow(self: memory.MemoryKeyManager, key_id: str, key_type: KeyType) -> Key:
        begun.set()
        await go_on.wait()
        return await made(self, key_id, key_type)

    monkeypatch.setattr(memory.MemoryKeyManager, "generate", slow)
    call = asyncio.create_task(generate(plugin))
    await begun.wait()
    change = asyncio.create_task(configure(plugin, 'device = "other"'))
    later = asyncio.create_task(ids(plugin))
    await asyncio.sleep(0)
    go_on.set()
    assert (await call).id == "x509-CA-A"
    await change
    assert await later == []


async def test_nothing_is_served_after_the_end(plugin: KeyManagerPlugin) -> None:
    await configure(plugin, "")
    await plugin.close()
    await plugin.close()
    with pytest.raises(RpcError, match="not configured"):
        await ids(plugin)


async def test_a_key_has_a_fingerprint_of_its_own(plugin: KeyManagerPlugin) -> None:
    await configure(plugin, "")
    first, second = await generate(plugin), await generate(plugin)
    assert first.fingerprint == hashlib.sha256(first.pkix_data).hexdigest() != second.fingerprint
    signed = await plugin.sign_data(request(hash_algorithm=api.SHA256), *NOBODY)
    assert signed.key_fingerprint == second.fingerprint
    found = await plugin.get_public_key(api.GetPublicKeyRequest(key_id="x509-CA-A"), *NOBODY)
    assert found.public_key == second


async def test_a_key_that_is_not_there_is_no_error_to_look_for(plugin: KeyManagerPlugin) -> None:
    await configure(plugin, "")
    assert not (await plugin.get_public_key(api.GetPublicKeyRequest(key_id="x"), *NOBODY)).HasField("public_key")
    with pytest.raises(NotFound, match="no key has the id"):
        await plugin.sign_data(request(hash_algorithm=api.SHA256), *NOBODY)


PSS = api.SignDataRequest.PSSOptions


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_id": ""}, "key id is required"),
        ({}, "signer opts is required"),
        ({"hash_algorithm": api.UNSPECIFIED_HASH_ALGORITHM}, "hash algorithm is required"),
        ({"hash_algorithm": api.SHA224}, 'unsupported hash algorithm "SHA224": use SHA256, SHA384 or SHA512'),
        ({"hash_algorithm": 99}, 'unsupported hash algorithm "99"'),
        ({"hash_algorithm": api.SHA256, "data": b"short"}, "digest has 32 bytes, this one has 5"),
        ({"pss_options": PSS(salt_length=-1)}, "hash algorithm is required"),
        ({"pss_options": PSS(salt_length=20, hash_algorithm=api.SHA256)}, "unsupported PSS salt length 20"),
    ],
)
async def test_what_cannot_be_signed_is_refused(plugin: KeyManagerPlugin, fields: Any, reason: str) -> None:
    await configure(plugin, "")
    await generate(plugin)
    with pytest.raises(InvalidArgument, match=reason):
        await plugin.sign_data(request(**fields), *NOBODY)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_id": ""}, "key id is required"),
        ({"key_id": "x"}, "key type is required"),
        ({"key_id": "x", "key_type": 9}, "key type is required: one of ec-p256, ec-p384, rsa-2048, rsa-4096"),
    ],
)
async def test_what_cannot_be_made_is_refused(plugin: KeyManagerPlugin, fields: Any, reason: str) -> None:
    await configure(plugin, "")
    with pytest.raises(InvalidArgument, match=reason):
        await plugin.generate_key(api.GenerateKeyRequest(**fields), *NOBODY)
