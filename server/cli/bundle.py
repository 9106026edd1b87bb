"""`spire-server bundle`: the server's own bundle, and those of the trust domains it federates with."""

from __future__ import annotations

from collections.abc import Sequence

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.types import bundle_pb2 as types
from operations import output
from operations.errors import InvalidArgument, Refused, SpireError
from operations.flags import FlagSet, Run
from operations.quoting import quote
from server.cli import bundle_text
from server.cli.bundle_text import PEM, print_bundle
from server.cli.client import calling
from transport.client import Channel

SERVICE = "/spire.api.server.bundle.v1.Bundle"
PAGE = 25
"""Few, because bundles may be long and a message has a limit."""

_Delete = bundle_pb2.BatchDeleteFederatedBundleRequest
MODES = {"restrict": _Delete.RESTRICT, "delete": _Delete.DELETE, "dissociate": _Delete.DISSOCIATE}

FORMAT_USAGE = "Form of the bundle: pem (X.509 only) or spiffe (JWKS)"
PRINTED = f"{FORMAT_USAGE}. Without effect beside -output json"


def show(flags: FlagSet) -> Run:
    bundle_format = flags.string("format", PEM, PRINTED)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        bundle = await server.unary(f"{SERVICE}/GetBundle", bundle_pb2.GetBundleRequest(), types.Bundle)
        output.print_result(form.value, bundle, pretty=lambda: print_bundle(bundle, bundle_format.value))

    return calling(flags, act)


def count(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = bundle_pb2.CountBundlesRequest()
        found = await server.unary(f"{SERVICE}/CountBundles", request, bundle_pb2.CountBundlesResponse)
        text = f"{found.count} {'bundle' if found.count == 1 else 'bundles'}"
        output.print_result(form.value, found, pretty=lambda: print(text))

    return calling(flags, act)


def list_all(flags: FlagSet) -> Run:
    trust_domain = flags.string("id", "", "Only the bundle of this trust domain, e.g. spiffe://other.test")
    bundle_format = flags.string("format", PEM, PRINTED)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if trust_domain.value:
            request = bundle_pb2.GetFederatedBundleRequest(trust_domain=trust_domain.value)
            bundle = await server.unary(f"{SERVICE}/GetFederatedBundle", request, types.Bundle)
            output.print_result(form.value, bundle, pretty=lambda: print_bundle(bundle, bundle_format.value))
            return
        found = await _all(server)
        output.print_result(form.value, found, pretty=lambda: _print_list(found.bundles, bundle_format.value))

    return calling(flags, act)


def set_one(flags: FlagSet) -> Run:
    trust_domain = flags.string("id", "", "Trust domain whose bundle it is, e.g. spiffe://other.test; required")
    path = flags.string("path", "", "File with the bundle; standard input when unset")
    bundle_format = flags.string("format", PEM, FORMAT_USAGE)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not trust_domain.value:
            raise InvalidArgument("-id is required")
        chosen = bundle_text.chosen(bundle_format.value)
        try:
            content = bundle_text.read(path.value)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to load bundle data: {error}") from error
        bundle = bundle_text.parse(content, chosen, trust_domain.value)
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle])
        try:
            response = await server.unary(
                f"{SERVICE}/BatchSetFederatedBundle", request, bundle_pb2.BatchSetFederatedBundleResponse
            )
        except SpireError as error:
            raise Refused(f"failed to set federated bundle: {error}") from error
        output.print_result(form.value, response, pretty=lambda: _print_set(response))

    return calling(flags, act)


def delete(flags: FlagSet) -> Run:
    trust_domain = flags.string("id", "", "Trust domain whose bundle it is, e.g. spiffe://other.test; required")
    mode = flags.string(
        "mode",
        "restrict",
        "What to do when entries federate with it: restrict (keep the bundle, and fail), delete (delete them too), "
        "dissociate (let them federate with it no more)",
    )
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not trust_domain.value:
            raise InvalidArgument("-id is required")
        chosen = mode.value or "restrict"
        if chosen not in MODES:
            raise InvalidArgument(f"unsupported mode {quote(chosen)}: use {', '.join(MODES)}")
        request = _Delete(mode=MODES[chosen], trust_domains=[trust_domain.value])
        try:
            response = await server.unary(
                f"{SERVICE}/BatchDeleteFederatedBundle", request, bundle_pb2.BatchDeleteFederatedBundleResponse
            )
        except SpireError as error:
            raise Refused(f"failed to delete federated bundle: {error}") from error
        output.print_result(form.value, response, pretty=lambda: _print_deletion(response))

    return calling(flags, act)


async def _all(server: Channel) -> bundle_pb2.ListFederatedBundlesResponse:
    request = bundle_pb2.ListFederatedBundlesRequest(page_size=PAGE)
    found = bundle_pb2.ListFederatedBundlesResponse()
    while True:
        page = await server.unary(f"{SERVICE}/ListFederatedBundles", request, bundle_pb2.ListFederatedBundlesResponse)
        found.bundles.extend(page.bundles)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _print_list(bundles: Sequence[types.Bundle], bundle_format: str) -> None:
    for number, bundle in enumerate(bundles):
        if number:
            print()
        chosen = bundle_text.chosen(bundle_format)
        print("*" * 40, f"* {bundle.trust_domain}", "*" * 40, sep="\n")
        print_bundle(bundle, chosen)


def _print_set(response: bundle_pb2.BatchSetFederatedBundleResponse) -> None:
    for result in response.results:
        if result.status.code:
            raise Refused(f"failed to set federated bundle: {result.status.message}")
        print("bundle set.")


def _print_deletion(response: bundle_pb2.BatchDeleteFederatedBundleResponse) -> None:
    for result in response.results:
        if result.status.code:
            raise Refused(f"failed to delete federated bundle {quote(result.trust_domain)}: {result.status.message}")
        print("bundle deleted.")
