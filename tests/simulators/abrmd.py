"""tpm2-abrmd, the resource manager on the bus, before a swtpm and on a bus of the test's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

from tests.simulators.spire import eventually
from tests.simulators.swtpm import Swtpm
from tests.simulators.system_bus import SystemBus

TCTI = "tabrmd:bus_type=system"


@contextmanager
def before(tpm: Swtpm) -> Generator[dict[str, str]]:
    """Yields the environment of clients, whose TCTI is `TCTI`. The bus begins and ends with it."""
    bus = SystemBus(tpm.folder)
    bus.start()
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    log = tpm.folder / "abrmd.log"
    allowed = ["--allow-root"] if os.geteuid() == 0 else []
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            ["tpm2-abrmd", "--tcti", tpm.tcti, *allowed],
            env=os.environ | environment,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: _answers(environment), f"tpm2-abrmd: {log.read_text()}")
        yield environment
    finally:
        daemon.terminate()
        daemon.wait(30)
        bus.stop()


def _answers(environment: dict[str, str]) -> bool:
    asked = subprocess.run(
        ["tpm2_getcap", "handles-transient"],
        env=os.environ | environment | {"TPM2TOOLS_TCTI": TCTI},
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0
