"""`spire-attestor-oidc`: WorkloadAttestor "oidc_attestor" as a plugin."""

from __future__ import annotations

import sys

EXAMPLE = """\
        issuers "https://issuer.example.org" {
            audiences = ["spire"]
            claims    = ["groups"]
        }
        token_path = "/var/run/secrets/tokens/spire"
"""


def main() -> int:
    from plugins.served import by_hand

    about = by_hand.About(
        program="spire-attestor-oidc",
        type="WorkloadAttestor",
        name="oidc_attestor",
        purpose="It tells workloads by the OIDC tokens that they hold.",
        place="beside the other attestors into the plugins section of agent.conf",
        example=EXAMPLE,
        runbook="oidc-workloads.md",
    )
    return by_hand.main(about, _serve)


def _serve() -> int:
    from attestors.oidc import attestor
    from attestors.oidc.configuration import Configuration
    from attestors.served import WorkloadAttestorPlugin
    from plugins.served.program import run

    return run(lambda: WorkloadAttestorPlugin(attestor.NAME, Configuration, attestor.load))


if __name__ == "__main__":
    sys.exit(main())
