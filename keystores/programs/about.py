"""What the key stores' programs say of themselves."""

from __future__ import annotations

from plugins.served.by_hand import About


def about(name: str, kept_in: str, example: str) -> About:
    """`kept_in` is where the keys are."""
    return About(
        program=f"spire-keystore-{name}",
        type="KeyManager",
        name=name,
        purpose=f"It keeps the keys of a SPIRE server or agent in {kept_in}.",
        place="in place of the other KeyManager into the plugins section of server.conf or agent.conf",
        example=example,
        runbook="go-spire.md",
    )
