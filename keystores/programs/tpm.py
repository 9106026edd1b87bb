"""`spire-keystore-tpm`: KeyManager "tpm" as a plugin."""

from __future__ import annotations

import sys

EXAMPLE = """\
        tcti      = "device:/dev/tpmrm0"
        keys_path = "/var/lib/spire/server/tpm-keys"
"""


def main() -> int:
    from keystores.programs.about import about
    from plugins.served import by_hand

    return by_hand.main(about("tpm", "a TPM", EXAMPLE), _serve)


def _serve() -> int:
    from keystores.programs.tpm_store import Tpm
    from keystores.served import KeyManagerPlugin
    from plugins.served.program import run

    return run(lambda: KeyManagerPlugin(Tpm()))


if __name__ == "__main__":
    sys.exit(main())
