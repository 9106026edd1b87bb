"""`spire-keystore-pkcs11`: KeyManager "pkcs11" as a plugin."""

from __future__ import annotations

import sys

EXAMPLE = """\
        module_path = "/usr/lib/softhsm/libsofthsm2.so"
        token_label = "spire"
        pin_file    = "/etc/spire/pin"
        keys_path   = "/var/lib/spire/server/pkcs11-keys.json"
"""


def main() -> int:
    from keystores.programs.about import about
    from plugins.served import by_hand

    return by_hand.main(about("pkcs11", "a token", EXAMPLE), _serve)


def _serve() -> int:
    from keystores.programs.pkcs11_store import Pkcs11
    from keystores.served import KeyManagerPlugin
    from plugins.served.program import run

    return run(lambda: KeyManagerPlugin(Pkcs11()))


if __name__ == "__main__":
    sys.exit(main())
