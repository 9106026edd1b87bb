"""Drives a Workload API with PyPI's spiffe, as a Python workload would; prints one JSON line per observation.

Runs as a program of its own: its generated messages and ours register the same names.

    python python_workload.py unix:///path watch 3
    python python_workload.py unix:///path jwt audience
"""

from __future__ import annotations

import json
import queue
import sys
import time
from datetime import UTC, datetime

from spiffe import JwtSvid, WorkloadApiClient, X509Source


def emit(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def watch(address: str, updates: int) -> None:
    changes: queue.Queue[None] = queue.Queue()
    with X509Source(socket_path=address) as source:
        source.subscribe_for_updates(lambda: changes.put(None))
        for left in range(updates, 0, -1):
            svid = source.get_x509_context().default_svid
            bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
            assert bundle is not None
            svid.leaf.verify_directly_issued_by(next(iter(bundle.x509_authorities)))
            assert svid.leaf.not_valid_after_utc > datetime.now(UTC)
            emit(
                "update",
                id=str(svid.spiffe_id),
                serial=f"{svid.leaf.serial_number:x}",
                not_after=int(svid.leaf.not_valid_after_utc.timestamp()),
                seen=int(time.time() * 1000),
            )
            if left > 1:
                changes.get(timeout=120)


def jwt(address: str, audience: str) -> None:
    with WorkloadApiClient(socket_path=address) as client:
        svid = client.fetch_jwt_svid(audience={audience})
        remote = client.validate_jwt_svid(svid.token, audience)
        bundles = client.fetch_jwt_bundles()
        bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        assert bundle is not None
        local = JwtSvid.parse_and_validate(svid.token, bundle, {audience})
        assert svid.spiffe_id == remote.spiffe_id == local.spiffe_id
        emit("jwt", id=str(svid.spiffe_id), expiry=svid.expiry, audience=sorted(svid.audience))


def main() -> None:
    address, command, argument = sys.argv[1:]
    if command == "watch":
        watch(address, int(argument))
    else:
        jwt(address, argument)


if __name__ == "__main__":
    main()
