"""docs/runbooks/vault.md: its policies are enough, and SPIRE's own policy is; its settings are settings."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from authorities import vault as authority
from keystores import errors
from keystores.vault import manager
from keystores.vault.configuration import AppRoleAuth, TokenAuth
from operations import hcl, logs
from plugins import catalog
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, KeyType, Scheme
from server.catalog import BUILTINS
from tests.simulators import openbao
from tests.simulators.openbao import Bao
from tests.simulators.pki import csr, ec_key

RUNBOOK = (Path(__file__).parents[3] / "docs/runbooks/vault.md").read_text()
KEYS, AUTHORITY, SETTINGS = re.findall(r"```hcl\n(.*?)```", RUNBOOK, re.DOTALL)
SPIRE = """
path "transit/keys/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "transit/sign/*" { capabilities = ["update"] }
"""
CONTEXT = PluginContext("example.org", None, logs.get("vault"))
DIGEST = hashlib.sha256(b"message").digest()


def token(bao: Bao, policy: str) -> TokenAuth:
    bao.write("sys/policies/acl/narrow", {"policy": policy})
    return TokenAuth(token=bao.token(policies=["narrow"]))


@pytest.mark.parametrize("policy", [KEYS, SPIRE], ids=["runbook", "spire"])
async def test_the_policy_for_keys_is_enough(policy: str) -> None:
    bao = openbao.shared()
    await asyncio.to_thread(bao.write, "transit/keys/another", {"type": "ecdsa-p256"})
    configuration = manager.Configuration(
        vault_addr=bao.url,
        ca_cert_path=str(bao.ca),
        key_identifier_value="server-a",
        token_auth=await asyncio.to_thread(token, bao, policy),
    )
    for _ in range(2):
        keys = await manager.load(configuration, CONTEXT)
        await keys.generate("key", KeyType.EC_P256)
        assert await (await keys.get("key")).sign(DIGEST, Scheme(Hash.SHA256))
        await _one_key(bao)
        await keys.close()


async def _one_key(bao: Bao) -> None:
    async with asyncio.timeout(60):
        while len(await asyncio.to_thread(bao.transit_keys, "server-a")) != 1:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def test_the_policy_for_the_authority_is_enough() -> None:
    bao = openbao.shared()
    configuration = authority.Configuration(
        vault_addr=bao.url, ca_cert_path=str(bao.ca), token_auth=await asyncio.to_thread(token, bao, AUTHORITY)
    )
    upstream = await authority.load(configuration, CONTEXT)
    minted = await upstream.mint_x509_ca(csr(ec_key(), uris=["spiffe://example.org"]), 3600)
    assert len(minted.chain) == len(minted.roots) == 1
    await upstream.close()
    other = manager.Configuration(
        vault_addr=bao.url,
        ca_cert_path=str(bao.ca),
        key_identifier_value="server-a",
        token_auth=configuration.token_auth,
    )
    with pytest.raises(errors.Refused, match=r"transit/keys\?list=true: .*permission denied"):
        await manager.load(other, CONTEXT)


def test_the_settings_are_settings() -> None:
    blocks = catalog.read(hcl.parse(SETTINGS, "runbook"))
    catalog.check(blocks, {"KeyManager": catalog.Count(), "UpstreamAuthority": catalog.Count()}, BUILTINS, "runbook")
    assert AppRoleAuth() == AppRoleAuth(approle_auth_mount_point="approle")
