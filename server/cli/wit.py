"""`spire-server wit mint`: a WIT-SVID without an entry, for operators, and the key that it is bound to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from generated.spire.api.server.svid.v1 import svid_pb2
from operations import output
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused, SpireError
from operations.flags import FlagSet, Run
from server.cli import values
from server.cli.client import calling
from server.cli.mint import PRIVATE, SERVICE, expiry, required_id, tell_if_capped, write_file
from transport.client import Channel

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVE_OF = {"ES256": "ec-p256", "ES384": "ec-p384"}


def mint(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID to issue, e.g. spiffe://example.org/admin; required")
    key_type = flags.string("keyType", "ec-p256", "Key to make: ec-p256, ec-p384, rsa-2048 or rsa-4096")
    algorithm = flags.string(
        "signingAlgorithm", "ES256", "How its holder will sign: ES256, ES384, RS256 to RS512 or PS256 to PS512"
    )
    ttl = flags.duration("ttl", timedelta(), "Lifetime, e.g. 30m; 0 means one hour", placeholder="duration")
    write = flags.string("write", "", "Write token and key into this folder (mode 0600); print only where")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        wanted = required_id(spiffe_id)
        seconds = values.ttl(ttl.value)
        _check(key_type.value, algorithm.value)
        from server.cli import jwk_key

        key = jwk_key.generate(key_type.value)
        request = svid_pb2.MintWITSVIDRequest(
            id=wanted.to_proto(), public_key=key.public_key, signing_algorithm=algorithm.value, ttl=seconds
        )
        try:
            minted = await server.unary(f"{SERVICE}/MintWITSVID", request, svid_pb2.MintWITSVIDResponse)
        except SpireError as error:
            raise Refused(f"unable to mint SVID: {error}") from error
        token = minted.svid.token
        if not token:
            raise PermanentlyUnusable("server response missing token")
        tell_if_capped("WIT-SVID", expiry(token, "WIT-SVID"), ttl.value)
        if write.value:
            folder = Path(write.value)
            write_file(folder / "token", token.encode(), PRIVATE, "token")
            print(f"WIT-SVID written to {folder / 'token'}")
            write_file(folder / "key", key.private_jwk.encode(), PRIVATE, "key")
            print(f"Private key written to {folder / 'key'}")
        elif form.value == output.JSON:
            output.print_object({"private_key": key.private_jwk, "svid": output.message_object(minted.svid)})
        else:
            print(f"{token}\n{key.private_jwk}")

    return calling(flags, act)


def _check(key_type: str, algorithm: str) -> None:
    """Whether such a key signs with that algorithm. Raises InvalidArgument, in SPIRE's words."""
    if algorithm in _RSA_ALGORITHMS:
        if key_type not in ("rsa-2048", "rsa-4096"):
            raise InvalidArgument(f"unsupported key type '{key_type}' for signing algorithm '{algorithm}'")
    elif algorithm not in _CURVE_OF:
        raise InvalidArgument(f"unsupported signing algorithm: {algorithm}")
    elif _CURVE_OF[algorithm] != key_type:
        raise InvalidArgument(f"unsupported key type '{key_type}' for '{algorithm}' signing algorithm")
