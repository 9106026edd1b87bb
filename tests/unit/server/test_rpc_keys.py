"""The Keys service of a running server: what its authorities use, what they used, and what nobody uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.keys.v1 import keys_pb2 as api
from operations import logs
from tests.simulators.house import House, refused, running
from transport.status import Code

KEYS = "/spire.keys.v1.Keys/"
AUTHORITY = "/spire.api.server.localauthority.v1.LocalAuthority/"


async def listed(house: House, key_id: str = "") -> dict[str, api.Key]:
    request = api.ListKeysRequest(id=key_id)
    found = await house.local.unary(KEYS + "ListKeys", request, api.ListKeysResponse)
    assert (found.key_manager, list(found.not_known)) == ("memory", [])
    return {key.id: key for key in found.keys}


async def prepare_jwt(house: House) -> str:
    prepared = await house.local.unary(
        AUTHORITY + "PrepareJWTAuthority",
        localauthority_pb2.PrepareJWTAuthorityRequest(),
        localauthority_pb2.PrepareJWTAuthorityResponse,
    )
    return prepared.prepared_authority.authority_id


async def test_keys_are_told_by_what_uses_them(house: House) -> None:
    prepared = await prepare_jwt(house)
    keys = await listed(house)
    assert set(keys) == {"x509-CA-A", "JWT-Signer-A", "JWT-Signer-B"}
    [x509] = keys["x509-CA-A"].used_by
    assert (x509.purpose, x509.status, len(x509.name)) == ("X.509 authority", "active", 40)
    assert keys["JWT-Signer-A"].used_by[0].status == "active"
    assert keys["JWT-Signer-B"].used_by == [api.Use(purpose="JWT authority", status="prepared", name=prepared)]
    await house.local.unary(
        AUTHORITY + "ActivateJWTAuthority",
        localauthority_pb2.ActivateJWTAuthorityRequest(authority_id=prepared),
        localauthority_pb2.ActivateJWTAuthorityResponse,
    )
    assert (await listed(house, "JWT-Signer-A"))["JWT-Signer-A"].used_by[0].status == "old"
    error = await refused(house.local, KEYS + "ListKeys", api.ListKeysRequest(id="nobody"))
    assert (error.code, error.message) == (
        Code.NOT_FOUND,
        "no key has or had the id 'nobody': `keys list` has those there are",
    )


async def test_software_keys_prove_that_they_are_here_and_not_that_they_stay(house: House) -> None:
    found = await house.local.unary(KEYS + "VerifyKeys", api.VerifyKeysRequest(), api.VerifyKeysResponse)
    assert [proof.key.id for proof in found.proofs] == ["JWT-Signer-A", "x509-CA-A"]
    for proof in found.proofs:
        checks = {check.name: check.passed for check in proof.checks}
        assert checks == {"public key": True, "possession": True, "non-exportability": False}
        assert not proof.stands


async def test_a_key_in_use_is_not_disposed_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup("info", "text")
    async with running(tmp_path, "audit_log_enabled = true") as house:
        await prepare_jwt(house)
        for key_id in ("x509-CA-A", "JWT-Signer-A", "JWT-Signer-B"):
            error = await refused(house.local, KEYS + "DisposeKey", api.DisposeKeyRequest(id=key_id))
            assert error.code is Code.PERMISSION_DENIED
            assert f"key '{key_id}' is in use, by the " in error.message
        assert len(await listed(house)) == 3
    lines = capfd.readouterr().out.splitlines()
    [audited] = [line for line in lines if "type=audit" in line and "key_id=x509-CA-A" in line]
    for field in ("method=DisposeKey", "status=error", "status_code=PermissionDenied", "caller_uid="):
        assert field in audited
