"""`spire-agent api fetch x509`, which is also `api fetch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.client import WorkloadApi, calling
from generated.spiffe.workload import workload_pb2
from identity.bundles import to_pem
from operations import files, output
from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run

if TYPE_CHECKING:
    from agent.cli.svids import Svid

PUBLIC = 0o644
PRIVATE = 0o600


def fetch(flags: FlagSet) -> Run:
    silent = flags.boolean("silent", "Do not describe the SVIDs; what -write wrote is still told")
    usage = "Write certificates, keys and bundles as PEM files into this folder. Without effect beside -output json"
    write = flags.string("write", "", usage)
    form = output.add_flag(flags)

    async def act(api: WorkloadApi) -> None:
        start = time.monotonic()
        request = workload_pb2.X509SVIDRequest()
        response = await api.first("FetchX509SVID", request, workload_pb2.X509SVIDResponse)
        took = timedelta(seconds=time.monotonic() - start)

        def pretty() -> None:
            from agent.cli import svids  # imports cryptography, which the other form does not need

            found = svids.read(response)
            if not silent.value:
                svids.print_all(found, took)
            if write.value:
                _write(Path(write.value), found)

        output.print_result(form.value, response, pretty=pretty)

    return calling(flags, act)


def _write(folder: Path, svids: Sequence[Svid]) -> None:
    for index, svid in enumerate(svids):
        _write_file(f"SVID #{index}", folder / f"svid.{index}.pem", to_pem(svid.chain), PUBLIC)
        _write_file(f"key #{index}", folder / f"svid.{index}.key", svid.key, PRIVATE)
        _write_file(f"bundle #{index}", folder / f"bundle.{index}.pem", to_pem(svid.bundle), PUBLIC)
        for number, (trust_domain_id, bundle) in enumerate(svid.federated.items()):
            what = f"federated bundle #{number} for trust domain {trust_domain_id}"
            _write_file(what, folder / f"federated_bundle.{index}.{number}.pem", to_pem(bundle), PUBLIC)


def _write_file(what: str, path: Path, text: str, mode: int) -> None:
    print(f"Writing {what} to file {path}.")
    try:
        files.write_atomically(path, text.encode(), mode)
    except OSError as error:
        raise InvalidArgument(f"open {path}: {(error.strerror or str(error)).lower()}") from error
