from __future__ import annotations

import pytest

from attestors.join_token.agent import JoinTokenAttestor
from operations.errors import ConfigurationError, Refused


async def test_the_token_is_the_proof() -> None:
    attestor = JoinTokenAttestor("secret")
    assert attestor.name == "join_token"
    assert (await attestor.begin()).payload == b"secret"


async def test_a_challenge_is_not_answered() -> None:
    attestation = await JoinTokenAttestor("secret").begin()
    with pytest.raises(Refused, match="challenge") as caught:
        await attestation.respond(b"?")
    assert "secret" not in str(caught.value)


async def test_without_a_token_the_operator_is_told() -> None:
    with pytest.raises(ConfigurationError, match="join token was not provided"):
        await JoinTokenAttestor("").begin()
