"""X509-SVIDs of a Workload API response: parsed, verified, printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from generated.spiffe.workload import workload_pb2
from identity import der, pem, x509svid
from identity.spiffeid import SpiffeId
from operations import duration, times
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from operations.quoting import quote


@dataclass(frozen=True, slots=True)
class Svid:
    """Certificates are DER. `federated` is by trust domain ID. `key` is PKCS#8 in PEM."""

    spiffe_id: str
    hint: str
    chain: Sequence[bytes]
    key: str
    bundle: Sequence[bytes]
    federated: Mapping[str, Sequence[bytes]]


def read(response: workload_pb2.X509SVIDResponse) -> list[Svid]:
    """What the response holds, each SVID verified against its bundle. Raises SpireError."""
    if not response.svids:
        raise NotFound("workload response contains no svids")
    federated = {
        trust_domain_id: _federated_bundle(trust_domain_id, data)
        for trust_domain_id, data in sorted(response.federated_bundles.items())
    }
    svids = [_read_one(index, svid, federated) for index, svid in enumerate(response.svids)]
    for svid in svids:
        _verify(svid)
    return svids


def print_all(svids: Sequence[Svid], took: timedelta, *, hints: bool = True, names: bool = False) -> None:
    """For people. `names` shows federated trust domains by name rather than by ID."""
    print(f"Received {len(svids)} svid{'' if len(svids) == 1 else 's'} after {duration.text(took)}")
    for svid in svids:
        print(f"\nSPIFFE ID:\t\t{svid.spiffe_id}")
        if svid.hint and hints:
            print(f"Hint:\t\t\t{svid.hint}")
        _print_validity("SVID", svid.chain[0])
        for number, intermediate in enumerate(svid.chain[1:], 1):
            _print_validity(f"Intermediate #{number}", intermediate)
        for number, authority in enumerate(svid.bundle, 1):
            _print_validity(f"CA #{number}", authority)
        for trust_domain_id, bundle in svid.federated.items():
            shown = trust_domain_id.removeprefix("spiffe://") if names else trust_domain_id
            for number, authority in enumerate(bundle, 1):
                _print_validity(f"[{shown}] CA #{number}", authority)
    print()


def _federated_bundle(trust_domain_id: str, data: bytes) -> list[bytes]:
    try:
        certificates = _parsed(data)
    except InvalidArgument as error:
        reason = f"the bundle of {quote(trust_domain_id)}, a federated trust domain, cannot be read: {error}"
        raise InvalidArgument(reason) from error
    if not certificates:
        raise InvalidArgument(f"the bundle of {quote(trust_domain_id)}, a federated trust domain, is empty")
    return certificates


def _read_one(index: int, svid: workload_pb2.X509SVID, federated: Mapping[str, Sequence[bytes]]) -> Svid:
    try:
        chain = _parsed(svid.x509_svid)
        if not chain:
            raise InvalidArgument("it has no certificate")
        key = _key(svid.x509_svid_key)
        bundle = _bundle(svid.bundle)
    except InvalidArgument as error:
        reason = f"SVID {index}, {quote(svid.spiffe_id)}, cannot be used: {error}"
        raise InvalidArgument(reason) from error
    return Svid(svid.spiffe_id, svid.hint, chain, key, bundle, federated)


def _bundle(data: bytes) -> list[bytes]:
    try:
        certificates = _parsed(data)
    except InvalidArgument as error:
        raise InvalidArgument(f"its bundle cannot be read: {error}") from error
    if not certificates:
        raise InvalidArgument("its bundle is empty")
    return certificates


def _parsed(data: bytes) -> list[bytes]:
    certificates = der.split(data)
    for certificate in certificates:
        der.certificate(certificate)
    return certificates


def _key(data: bytes) -> str:
    try:
        serialization.load_der_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"its private key cannot be read: {error}") from error
    return pem.private_key(data)


def _verify(svid: Svid) -> None:
    trust_domain = SpiffeId.parse(svid.spiffe_id).trust_domain
    try:
        x509svid.verify(svid.chain, {trust_domain: svid.bundle}, datetime.now(UTC))
    except SpireError as error:
        raise Refused(f"the SVID of {quote(svid.spiffe_id)} does not verify against its bundle: {error}") from error


def _print_validity(label: str, certificate: bytes) -> None:
    parsed: x509.Certificate = der.certificate(certificate)
    print(f"{label} Valid After:\t{_time(parsed.not_valid_before_utc)}")
    print(f"{label} Valid Until:\t{_time(parsed.not_valid_after_utc)}")


def _time(moment: datetime) -> str:
    return times.text(int(moment.timestamp()))
