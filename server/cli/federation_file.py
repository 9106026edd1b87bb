"""Federation relationships as JSON, for `federation create -data` and `federation update -data`.

The names are those of SPIRE's files: `{"federationRelationships": [{"trustDomain": "other.test", "bundleEndpointURL":
"https://…", "bundleEndpointProfile": "https_web", "trustDomainBundle": …, "trustDomainBundleFormat": "pem"}]}`. The
bundle is a text with PEM certificates, or, in the form spiffe, a bundle document. Unknown names bring a warning.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Set
from typing import Any, cast

import msgspec

from generated.spire.api.types import bundle_pb2
from generated.spire.api.types import federationrelationship_pb2 as types
from operations.errors import InvalidArgument
from operations.quoting import quote
from server.cli import bundle_text
from server.cli.entry_file import read_input
from server.cli.federation_flags import Relationship


def _folded(name: str) -> str:
    """Go's JSON takes names in any case, and files have them in several."""
    return name.replace("_", "").lower()


class _Relationship(msgspec.Struct, rename=_folded):
    trust_domain: str = ""
    bundle_endpoint_url: str = ""
    bundle_endpoint_profile: str = ""
    endpoint_spiffe_id: str = ""
    trust_domain_bundle: Any = None
    trust_domain_bundle_format: str = ""


class _File(msgspec.Struct):
    relationships: tuple[dict[str, Any], ...] = msgspec.field(default=(), name="federationrelationships")


def read(path: str) -> list[types.FederationRelationship]:
    """The relationships of a file, or of standard input for `-`. Raises InvalidArgument."""
    text = read_input(path)
    try:
        given = msgspec.convert(_lowered(msgspec.json.decode(text)), _File).relationships
        found = [msgspec.convert(_lowered(each), _Relationship) for each in given]
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"failed to parse JSON: {path}: {error}") from error
    _warn_of_unknown_names(path, {name for each in given for name in each})
    return [_to_proto(index, relationship) for index, relationship in enumerate(found)]


def _lowered(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name.lower(): value for name, value in cast("dict[str, Any]", document).items()}


def _to_proto(index: int, given: _Relationship) -> types.FederationRelationship:
    relationship = Relationship(
        given.trust_domain, given.bundle_endpoint_url, given.bundle_endpoint_profile, given.endpoint_spiffe_id
    )
    try:
        message = relationship.to_proto()
        if given.trust_domain_bundle is not None:
            message.trust_domain_bundle.CopyFrom(_bundle(given, relationship.endpoint_trust_domain()))
    except InvalidArgument as error:
        raise InvalidArgument(f"could not parse item {index}: {error}") from error
    return message


def _bundle(given: _Relationship, trust_domain: str) -> bundle_pb2.Bundle:
    bundle, form = given.trust_domain_bundle, given.trust_domain_bundle_format
    try:
        if form == bundle_text.SPIFFE:
            return bundle_text.parse(json.dumps(bundle).encode(), form, trust_domain)
        if form != bundle_text.PEM:
            raise InvalidArgument(f"bundle format {quote(form)} is unsupported; use pem or spiffe")
        if not isinstance(bundle, str):
            raise InvalidArgument("in the form pem it is a text")
        return bundle_text.parse(bundle.encode(), form, trust_domain)
    except InvalidArgument as error:
        raise InvalidArgument(f"cannot parse bundle raw message: {error}") from error


def _warn_of_unknown_names(path: str, names: Set[str]) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(_Relationship)}
    for name in sorted(name for name in names if name.lower() not in known):
        print(f"Warning: {path}: {name} is not known and was ignored", file=sys.stderr)
