"""`spire-agent api fetch jwt` and `api validate jwt`."""

from __future__ import annotations

import json
from collections.abc import Callable

from agent.cli.client import WorkloadApi, calling
from generated.spiffe.workload import workload_pb2
from operations import output
from operations.errors import InvalidArgument, Refused
from operations.flags import Flag, FlagSet, Run
from transport.status import Code, RpcError


def fetch(flags: FlagSet) -> Run:
    audience = flags.comma_strings(
        "audience", "Who is to accept the token, e.g. db or db,backup: separate several by commas; required"
    )
    spiffe_id = flags.string("spiffeID", "", "Fetch only the token of this identity; without it, one token of each")
    form = output.add_flag(flags)
    flags.custom("format", None, "The older name of -output", _setting(form))

    async def act(api: WorkloadApi) -> None:
        if not audience.value:
            raise InvalidArgument("-audience is required")
        bundles_request = workload_pb2.JWTBundlesRequest()
        bundles = await api.first("FetchJWTBundles", bundles_request, workload_pb2.JWTBundlesResponse)
        request = workload_pb2.JWTSVIDRequest(audience=audience.value, spiffe_id=spiffe_id.value)
        svids = await api.unary("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
        output.print_result(form.value, svids, bundles, pretty=lambda: _print(svids, bundles))

    return calling(flags, act)


def validate(flags: FlagSet) -> Run:
    audience = flags.string("audience", "", "The audience that the token must name, usually yours; required")
    svid = flags.string("svid", "", "The token to validate; required")
    form = output.add_flag(flags)

    async def act(api: WorkloadApi) -> None:
        if not audience.value:
            raise InvalidArgument("-audience is required")
        if not svid.value:
            raise InvalidArgument("-svid is required")
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience.value, svid=svid.value)
        try:
            valid = await api.unary("ValidateJWTSVID", request, workload_pb2.ValidateJWTSVIDResponse)
        except RpcError as error:
            if error.code is Code.INVALID_ARGUMENT:
                raise InvalidArgument(f"SVID is not valid: {error.message}") from error
            raise Refused(f"unable to validate JWT SVID: {error}") from error
        output.print_result(form.value, valid, pretty=lambda: _print_valid(valid))

    return calling(flags, act)


def _setting(form: Flag[str]) -> Callable[[str, None], None]:
    return lambda text, _: form.set(text)


def _print(svids: workload_pb2.JWTSVIDResponse, bundles: workload_pb2.JWTBundlesResponse) -> None:
    for svid in svids.svids:
        print(f"token({svid.spiffe_id}):\n\t{svid.svid}")
        if svid.hint:
            print(f"hint({svid.spiffe_id}):\n\t{svid.hint}")
    for trust_domain_id, jwks in sorted(bundles.bundles.items()):
        print(f"bundle({trust_domain_id}):\n\t{jwks.decode('utf-8', 'replace')}")


def _print_valid(valid: workload_pb2.ValidateJWTSVIDResponse) -> None:
    print("SVID is valid.")
    print(f"SPIFFE ID : {valid.spiffe_id}")
    claims = output.message_object(valid.claims)
    print(f"Claims    : {json.dumps(claims, ensure_ascii=False, sort_keys=True, separators=(', ', ':'))}")
