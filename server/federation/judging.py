"""Whether a bundle that was fetched may take the place of the one there is. Pure: values in, verdict or error out."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from identity import der
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import Refused
from operations.quoting import quote
from server.config.federation import Federated

_SCHEME = "spiffe://"


def judge(fetched: Bundle, known: Bundle | None, federated: Federated, now: datetime) -> None:
    """Raises Refused for a bundle that cannot be what the trust domain has now. `now` is aware.

    A document does not name its trust domain (SPIFFE Federation, 5.1). What can be seen is the SPIFFE ID that an X.509
    authority may bear: one of another trust domain is refused, since it could only vouch for what is not its own (4.2).
    """
    others = (fetched.jwt_authorities, fetched.wit_authorities)
    if not fetched.x509_authorities and not any(others):
        raise Refused("the fetched bundle has no authority at all, so nothing could be verified by it")
    trust_domain = fetched.trust_domain
    for authority in fetched.x509_authorities:
        _check_owner(authority.der, trust_domain)
    _check_usable(fetched, federated, now)
    _check_order(fetched, known)


def _check_owner(authority: bytes, trust_domain: TrustDomain) -> None:
    try:
        san = der.certificate(authority).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    for uri in san.value.get_values_for_type(x509.UniformResourceIdentifier):
        scheme, rest = uri[: len(_SCHEME)].lower(), uri[len(_SCHEME) :]
        if scheme == _SCHEME and rest.partition("/")[0] != trust_domain.name:
            raise Refused(
                f"the fetched bundle has an X.509 authority of {quote(uri[:300])}, so it is not the bundle of "
                f'"{trust_domain.id}": is it fetched from the right URL?'
            )


def _check_usable(fetched: Bundle, federated: Federated, now: datetime) -> None:
    authorities = fetched.x509_authorities
    if authorities:
        ends = max(der.certificate(each.der).not_valid_after_utc for each in authorities)
        if ends < now:
            raise Refused(
                f"all X.509 authorities of the fetched bundle have expired, the last one at {ends:%Y-%m-%dT%H:%M:%SZ}: "
                "what the endpoint serves is old, or a clock is wrong"
            )
    elif federated.endpoint_id is not None and federated.endpoint_id.trust_domain == fetched.trust_domain:
        raise Refused("the fetched bundle has no X.509 authority, so its endpoint could never be verified again")


def _check_order(fetched: Bundle, known: Bundle | None) -> None:
    """Numbers only order bundles that have one (SPIFFE Federation, 4.2): what an operator sets as PEM has none."""
    if known is None or not known.sequence_number or not fetched.sequence_number:
        return
    if fetched.sequence_number < known.sequence_number:
        raise Refused(
            f"the fetched bundle has the sequence number {fetched.sequence_number}, so it is older than the one "
            f"there is, which has {known.sequence_number}: if the trust domain counts anew, set its bundle by "
            f"`spire-server bundle set -id {fetched.trust_domain.id}`"
        )
