"""`keys list|show|verify|dispose` of both programs: what they ask, what they print, and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.main import main as agent_main
from generated.spire.keys.v1 import keys_pb2 as api
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

IN_USE = api.Key(
    handle="6af1",
    id="x509-CA-A",
    type="ec-p256",
    public_key=b"der",
    label="server-a/x509-CA-A",
    token="spire, serial 12",
    attributes={"CKA_SENSITIVE": True, "CKA_EXTRACTABLE": False},
    created_at=1795713929,
    last_signature_at=1795713930,
    used_by=[api.Use(purpose="X.509 authority", status="active", name="ab01")],
)
RETIRED = api.Key(handle="77", id="x509-CA-A", retired_at=1795713929, dispose_at=1795796729)


@pytest.fixture(params=["server", "agent"])
def program(request: pytest.FixtureRequest, spire_server: Run, spire_agent: Run) -> Run:
    return spire_server if request.param == "server" else spire_agent


async def test_keys_in_words(program: Run, canned: Canned) -> None:
    canned.answers["ListKeys"] = api.ListKeysResponse(key_manager="pkcs11", keys=[IN_USE, RETIRED])
    assert (await program("keys list")).out == (
        'Found 2 keys in key manager "pkcs11"\n'
        "\n"
        "  Key ID:         x509-CA-A\n"
        "  Handle:         6af1\n"
        "  Type:           ec-p256\n"
        "  Label:          server-a/x509-CA-A\n"
        "  Token:          spire, serial 12\n"
        "  Attributes:     not CKA_EXTRACTABLE, CKA_SENSITIVE\n"
        "  Created:        2026-11-26T17:25:29Z\n"
        "  Used by:        active X.509 authority ab01\n"
        "  Last signature: 2026-11-26T17:25:30Z\n"
        "\n"
        "  Key ID:         x509-CA-A\n"
        "  Handle:         77\n"
        "  Type:           no signing key\n"
        "  Label:          not known\n"
        "  Token:          not known\n"
        "  Attributes:     not known\n"
        "  Created:        not known\n"
        "  Used by:        nobody; retired\n"
        "  Last signature: none since the start\n"
        "  Retired:        2026-11-26T17:25:29Z\n"
        "  Disposed of:    2026-11-27T16:25:29Z\n"
    )
    canned.answers["ListKeys"] = api.ListKeysResponse(key_manager="other", keys=[IN_USE], not_known=["it tells little"])
    shown = await program("keys show", "-id", "x509-CA-A")
    assert shown.out.startswith('Found 1 key in key manager "other"\nIt tells little.\n\n  Key ID:')
    canned.answers["ListKeys"] = api.ListKeysResponse(
        key_manager="other", keys=[RETIRED], not_known=["it tells little"]
    )
    assert "  Last signature: not known\n" in (await program("keys show", "-id", "x509-CA-A")).out
    assert canned.requests == [api.ListKeysRequest(), *[api.ListKeysRequest(id="x509-CA-A")] * 2]


async def test_keys_for_programs(program: Run, canned: Canned) -> None:
    canned.answers["ListKeys"] = api.ListKeysResponse(key_manager="pkcs11", keys=[RETIRED])
    assert (await program("keys list", "-output", "json")).out == (
        '{"key_manager":"pkcs11","keys":[{"attributes":{},"dispose_at":"1795796729","handle":"77","id":"x509-CA-A",'
        '"label":"","public_key":"","retired_at":"1795713929","token":"","type":"","used_by":[]}],"not_known":[]}\n'
    )


async def test_a_proof_that_stands(program: Run, canned: Canned) -> None:
    attestation = api.Attestation(format="tpm2-certify", statement=b"123", certificates=[b"1"])
    checks = [api.Check(name="possession", passed=True, found="it signed")]
    proof = api.Proof(key=IN_USE, stands=True, checks=checks, attestation=attestation)
    canned.answers["VerifyKeys"] = api.VerifyKeysResponse(key_manager="tpm", proofs=[proof])
    result = await program("keys verify", "-id", "x509-CA-A")
    assert result.out == (
        "Key x509-CA-A: proven\n"
        "  Handle:         6af1\n"
        "  passed  possession: it signed\n"
        "  device's own attestation: tpm2-certify, 3 bytes, 1 certificates; -output json\n"
    )
    assert (result.err, result.status) == ("", 0)
    assert canned.requests == [api.VerifyKeysRequest(id="x509-CA-A")]


@pytest.mark.parametrize("form", ["pretty", "json"])
async def test_a_proof_that_fails_ends_the_command_so(program: Run, canned: Canned, form: str) -> None:
    proofs = [
        api.Proof(key=IN_USE, stands=True, checks=[api.Check(name="possession", passed=True, found="it signed")]),
        api.Proof(
            key=api.Key(id="JWT-Signer-A"), checks=[api.Check(name="non-exportability", passed=False, found="a file")]
        ),
    ]
    canned.answers["VerifyKeys"] = api.VerifyKeysResponse(key_manager="disk", proofs=proofs)
    result = await program("keys verify", "-output", form)
    assert (result.err, result.status) == ("Error: 1 of 2 keys not proven: JWT-Signer-A\n", 1)
    if form == "pretty":
        assert "\n\nKey JWT-Signer-A: NOT PROVEN\n" in result.out
        assert "  FAILED  non-exportability: a file\n" in result.out
    else:
        assert '"stands":false' in result.out
    canned.answers["VerifyKeys"] = api.VerifyKeysResponse(key_manager="disk")
    assert (await program("keys verify")).status == 1, "nothing proven is no proof"


async def test_a_key_is_disposed_of_by_id_or_handle(program: Run, canned: Canned) -> None:
    canned.answers["DisposeKey"] = api.DisposeKeyResponse(key=RETIRED)
    assert (await program("keys dispose", "-handle", "77")).out == "Key x509-CA-A (77) was destroyed.\n"
    assert (await program("keys dispose", "-id", "x509-CA-A")).status == 0
    assert canned.requests == [api.DisposeKeyRequest(handle="77"), api.DisposeKeyRequest(id="x509-CA-A")]
    for flags in ((), ("-id", "a", "-handle", "b")):
        result = await program("keys dispose", *flags)
        assert (result.err, result.status) == ("Error: name one key, with -id or with -handle\n", 1)
    assert (await program("keys show")).err == "Error: a key ID is required: name it with -id\n"


async def test_a_refusal_is_one_line(program: Run, canned: Canned) -> None:
    error = RpcError(Code.PERMISSION_DENIED, "key 'x509-CA-A' is in use")
    canned.answers.update(DisposeKey=error, ListKeys=error, VerifyKeys=error)
    for command in (("dispose", "-id", "a"), ("list",), ("show", "-id", "a"), ("verify",)):
        result = await program(f"keys {command[0]}", *command[1:])
        expected = "Error: rpc error: code = PermissionDenied desc = key 'x509-CA-A' is in use\n"
        assert (result.out, result.err, result.status) == ("", expected, 1)


def test_an_agent_without_an_admin_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["spire-agent", "keys", "list", "-socketPath", str(tmp_path / "none.sock")])
    with pytest.raises(SystemExit, match="1"):
        agent_main()
    assert "where its file sets admin_socket_path; name it with -socketPath" in capsys.readouterr().err
