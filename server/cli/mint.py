"""`spire-server x509 mint` and `jwt mint`: SVIDs without an entry, for operators."""

from __future__ import annotations

import base64
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2 as types
from identity import pem
from identity.bundles import to_pem
from identity.spiffeid import SpiffeId
from operations import files, output, times
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused, SpireError
from operations.flags import Flag, FlagSet, Run
from operations.quoting import quote
from server.cli import values
from server.cli.client import calling
from transport.client import Channel

SERVICE = "/spire.api.server.svid.v1.SVID"
GET_BUNDLE = "/spire.api.server.bundle.v1.Bundle/GetBundle"
PUBLIC = 0o644
PRIVATE = 0o600


def x509(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID to issue, e.g. spiffe://example.org/admin; required")
    ttl = flags.duration(
        "ttl", timedelta(), "Lifetime, e.g. 30m; 0 means the server's default_x509_svid_ttl", placeholder="duration"
    )
    dns_names = flags.strings("dns", "DNS name to put into the SVID, e.g. web.example.org; repeatable")
    write = flags.string("write", "", "Write svid.pem, key.pem and bundle.pem into this folder; print only where")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        wanted = required_id(spiffe_id)
        from server.cli import signing_request

        seconds = values.ttl(ttl.value)
        csr, key = signing_request.generate(wanted, dns_names.value)
        minted = await _minted(server, svid_pb2.MintX509SVIDRequest(csr=csr, ttl=seconds))
        authorities = await _authorities(server)
        tell_if_capped("X509-SVID", minted.svid.expires_at, ttl.value)
        if write.value:
            _write(Path(write.value), list(minted.svid.cert_chain), key, authorities)
        elif form.value == output.JSON:
            chain = [_base64(der) for der in minted.svid.cert_chain]
            roots = [_base64(der) for der in authorities]
            output.print_object({"x509_svid": chain, "private_key": _base64(key), "root_cas": roots})
        else:
            print(f"X509-SVID:\n{to_pem(minted.svid.cert_chain)}")
            print(f"Private key:\n{pem.private_key(key)}")
            print(f"Root CAs:\n{to_pem(authorities)}")

    return calling(flags, act)


def jwt(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID to issue, e.g. spiffe://example.org/admin; required")
    ttl = flags.duration(
        "ttl", timedelta(), "Lifetime, e.g. 5m; 0 means the server's default_jwt_svid_ttl", placeholder="duration"
    )
    audience = flags.strings("audience", "Who is to accept the token, its claim aud; repeatable, at least one")
    write = flags.string("write", "", "Write the token to this file (mode 0600) instead of printing it")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if spiffe_id.value and not audience.value:
            raise InvalidArgument("at least one audience must be specified")
        wanted = required_id(spiffe_id)
        request = svid_pb2.MintJWTSVIDRequest(id=wanted.to_proto(), ttl=values.ttl(ttl.value), audience=audience.value)
        try:
            minted = await server.unary(f"{SERVICE}/MintJWTSVID", request, svid_pb2.MintJWTSVIDResponse)
        except SpireError as error:
            raise Refused(f"unable to mint SVID: {error}") from error
        token = minted.svid.token
        if not token:
            raise PermanentlyUnusable("server response missing token")
        tell_if_capped("JWT-SVID", expiry(token, "JWT-SVID"), ttl.value)
        if write.value:
            write_file(Path(write.value), token.encode(), PRIVATE, "token")
            print(f"JWT-SVID written to {Path(write.value)}")
        else:
            output.print_result(form.value, minted, pretty=lambda: print(token))

    return calling(flags, act)


def required_id(spiffe_id: Flag[str]) -> SpiffeId:
    """Raises InvalidArgument."""
    if not spiffe_id.value:
        raise InvalidArgument("spiffeID must be specified")
    return SpiffeId.parse(spiffe_id.value)


async def _minted(server: Channel, request: svid_pb2.MintX509SVIDRequest) -> svid_pb2.MintX509SVIDResponse:
    try:
        minted = await server.unary(f"{SERVICE}/MintX509SVID", request, svid_pb2.MintX509SVIDResponse)
    except SpireError as error:
        raise Refused(f"unable to mint SVID: {error}") from error
    if not minted.svid.cert_chain:
        raise PermanentlyUnusable("server response missing SVID chain")
    return minted


async def _authorities(server: Channel) -> list[bytes]:
    """X.509 authorities in DER."""
    try:
        bundle = await server.unary(GET_BUNDLE, bundle_pb2.GetBundleRequest(), types.Bundle)
    except SpireError as error:
        raise Refused(f"unable to get bundle: {error}") from error
    if not bundle.x509_authorities:
        raise PermanentlyUnusable("server response missing X509 Authorities")
    return [authority.asn1 for authority in bundle.x509_authorities]


def expiry(token: str, what: str) -> int | None:
    """The claim `exp` of a token whose signature nobody has checked."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return int(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        print(f"Unable to determine {what} lifetime: the token has no claim exp that can be read", file=sys.stderr)
        return None


def tell_if_capped(what: str, expires_at: int | None, ttl: timedelta) -> None:
    """Tell, on standard error, that less was given than was asked for."""
    if expires_at is not None and expires_at - time.time() < ttl.total_seconds():
        expiry = quote(times.rfc3339(expires_at))
        print(f"{what} lifetime was capped shorter than specified ttl; expires {expiry}", file=sys.stderr)


def _write(folder: Path, chain: list[bytes], key: bytes, authorities: list[bytes]) -> None:
    write_file(folder / "svid.pem", to_pem(chain).encode(), PUBLIC, "SVID")
    print(f"X509-SVID written to {folder / 'svid.pem'}")
    write_file(folder / "key.pem", pem.private_key(key).encode(), PRIVATE, "key")
    print(f"Private key written to {folder / 'key.pem'}")
    write_file(folder / "bundle.pem", to_pem(authorities).encode(), PUBLIC, "bundle")
    print(f"Root CAs written to {folder / 'bundle.pem'}")


def write_file(path: Path, data: bytes, mode: int, what: str) -> None:
    """Raises InvalidArgument."""
    try:
        files.write_atomically(path, data, mode)
    except OSError as error:
        raise InvalidArgument(
            f"unable to write {what}: open {path}: {(error.strerror or str(error)).lower()}"
        ) from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
