"""`spire-attestor-oidc`: WorkloadAttestor "oidc_attestor" as a plugin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from operations.version import VERSION
from plugins.served.handshake import invited

TYPE = "WorkloadAttestor"


def main() -> int:
    """Returns the status to exit with."""
    if invited(TYPE, os.environ):
        from attestors.oidc.served import OidcPlugin
        from plugins.served.program import run

        return run(OidcPlugin)
    if sys.argv[1:] in (["--version"], ["-version"]):
        print(VERSION)
        return 0
    asked = sys.argv[1:] in (["-h"], ["-help"], ["--help"])
    print(_advice(), end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 1


def _advice() -> str:
    """What a person who runs a plugin by hand needs to know."""
    return f"""\
spire-attestor-oidc is a plugin: SPIRE's agent runs it, not you. It attests workloads by their OpenID Connect tokens.
Put this into the plugins section of agent.conf:

WorkloadAttestor "oidc_attestor" {{
    plugin_cmd = "{Path(sys.argv[0]).absolute()}"
    plugin_data {{
        token_path = "/var/run/secrets/tokens/spire"
        issuers "https://issuer.example.org" {{
            audiences = ["spire"]
            claims    = ["kubernetes.io.namespace"]
        }}
    }}
}}
"""


if __name__ == "__main__":
    sys.exit(main())
