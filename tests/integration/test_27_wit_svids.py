"""WIT-SVIDs of a server whose keys are in a token: minted, verified by strangers, over a rotation, and turned off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from identity import der, jwks
from identity.spiffeid import TrustDomain
from tests.integration.conftest import MakeAgent, MakeServer
from tests.simulators.spire import Server, eventually

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
ON = 'experimental { feature_flags = ["wit-svid"] }'
MOST_KEYS = 8


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRE_SERVER_FFLAGS", "wit-svid")


def claims_of(server: Server, token: str) -> dict[str, Any]:
    """After the token was verified by the bundle document."""
    document = server.ask("bundle", "show", "-format", "spiffe").stdout
    header = jwt.get_unverified_header(token)
    [key] = [
        each.public_key
        for each in jwks.load(TrustDomain("example.org"), document).wit_authorities
        if each.key_id == header["kid"]
    ]
    claims: dict[str, Any] = jwt.decode(token, der.public_key(key), algorithms=[header["alg"]])
    return claims


def minted(server: Server, folder: Path) -> str:
    """A token that is bound to the key that came with it."""
    folder.mkdir(exist_ok=True)
    server.ask("wit", "mint", "-spiffeID", WORKLOAD, "-write", str(folder))
    token = (folder / "token").read_text()
    private = ECAlgorithm.from_jwk((folder / "key").read_text())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    claims = claims_of(server, token)
    assert claims["sub"] == WORKLOAD
    proof = jwt.encode({"for": "b"}, private, algorithm="ES256")
    bound = ECAlgorithm.from_jwk(json.dumps(claims["cnf"]["jwk"]))
    assert isinstance(bound, ec.EllipticCurvePublicKey)
    assert jwt.decode(proof, bound, algorithms=[claims["cnf"]["jwk"]["alg"]]) == {"for": "b"}
    return token


def authority(server: Server, state: str) -> str:
    found: str = server.ask_json("localauthority", "wit", "show").get(state, {}).get("authority_id", "")
    return found


def test_wit_svids_live_and_die_with_their_flag(make_server: MakeServer, make_agent: MakeAgent, tmp_path: Path) -> None:
    server = make_server(settings=ON)
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    first = minted(server, tmp_path / "first")
    eventually(lambda: WORKLOAD in agent.fetch(), "the workload's SVID, beside a bundle with WIT authorities")

    # Both slots, again and again: what is in the token stays within the server's share.
    for _ in range(3):
        prepared = server.ask_json("localauthority", "wit", "prepare")["prepared_authority"]["authority_id"]
        server.ask("localauthority", "wit", "activate", "-authorityID", prepared)
        assert authority(server, "active") == prepared
    keys = server.ask_json("keys", "list")["keys"]
    assert len(keys) <= MOST_KEYS
    used = {use["purpose"] for key in keys for use in key["used_by"]}
    assert "WIT authority" in used
    second = minted(server, tmp_path / "second")
    assert claims_of(server, first)["sub"] == claims_of(server, second)["sub"]
    old = authority(server, "old")
    server.ask("localauthority", "wit", "taint", "-authorityID", old)
    server.ask("localauthority", "wit", "revoke", "-authorityID", old)

    # Without the flag: no more are signed, the others are still verified, and the journal keeps its place.
    active = authority(server, "active")
    server.run.end()
    path = server.folder / "server.conf"
    text = path.read_text()
    path.write_text(text.replace(ON, ""))
    server.start()
    refusal = server.ask("wit", "mint", "-spiffeID", WORKLOAD, check=False)
    assert refusal.returncode == 1
    assert refusal.stderr.endswith("code = Unimplemented desc = WIT functionality is disabled\n")
    assert claims_of(server, second)["sub"] == WORKLOAD
    server.ask("localauthority", "jwt", "prepare")
    server.run.end()
    path.write_text(text)
    server.start()
    assert authority(server, "active") == active
    minted(server, tmp_path / "third")
