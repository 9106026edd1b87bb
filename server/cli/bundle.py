"""`spire-server bundle show`."""

from __future__ import annotations

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.types import bundle_pb2 as types
from identity import bundles
from operations import output
from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run
from operations.quoting import quote
from server.cli.client import calling
from transport.client import Channel

GET = "/spire.api.server.bundle.v1.Bundle/GetBundle"
PEM = "pem"
SPIFFE = "spiffe"


def show(flags: FlagSet) -> Run:
    usage = "Form of the bundle: pem (X.509 only) or spiffe (JWKS). Without effect beside -output json"
    bundle_format = flags.string("format", PEM, usage)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        bundle = await server.unary(GET, bundle_pb2.GetBundleRequest(), types.Bundle)
        output.print_result(form.value, bundle, pretty=lambda: print_bundle(bundle, bundle_format.value))

    return calling(flags, act)


def print_bundle(bundle: types.Bundle, bundle_format: str) -> None:
    """As PEM, or as a SPIFFE bundle document. Raises InvalidArgument for another format."""
    chosen = bundle_format.lower() or PEM
    if chosen == PEM:
        print(bundles.to_pem([authority.asn1 for authority in bundle.x509_authorities]), end="")
    elif chosen == SPIFFE:
        print(bundles.Bundle.from_proto(bundle).to_jwks())
    else:
        raise InvalidArgument(f"invalid format: {quote(chosen)}")
