"""What may be issued: the only makers of the single-use values that the certificate authority takes.

Each function checks one kind of request and returns an approval, which can be issued from once. Texts are SPIRE's
where operators know them; all of them raise InvalidArgument, and approve_agent Refused besides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity import der, jwks, jws, spiffeid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused
from server.ca import dns, names

_MAX_CSR = 64 * 1024
_RSA_BITS = range(2048, 8192 + 1)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
# Verifiers take tokens up to 64 KiB; what they spend on headers and signature is a fraction of the rest.
_MAX_AUDIENCE = 32 * 1024

# A thread's hop costs about as much as checking one CSR; more than a few would hold up the event loop.
_INLINE = 4
_CHUNK = 64

_T = TypeVar("_T")
_MAKER = object()


class Kind(Enum):
    """Whose X509-SVID it is: lifetimes and composers differ."""

    WORKLOAD = "workload"
    AGENT = "agent"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class X509Request:
    """A checked X509-SVID. `public_key` and `subject` are DER; a `ttl` of 0 seconds is the configured one.

    `name` is what `subject` encodes.
    """

    spiffe_id: SpiffeId
    public_key: bytes
    subject: bytes
    name: x509.Name
    dns_names: tuple[str, ...] = ()
    ttl: int = 0
    kind: Kind = Kind.WORKLOAD


@dataclass(frozen=True, slots=True)
class DownstreamRequest:
    """A checked X.509 authority of a server below this one; as in X509Request."""

    public_key: bytes
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class JwtRequest:
    """A checked JWT-SVID. A `ttl` of 0 seconds is the configured one."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    ttl: int = 0
    include_jti: bool = False


@dataclass(frozen=True, slots=True)
class WitRequest:
    """A checked WIT-SVID. `jwk` is the public key that it is bound to; a `ttl` of 0 seconds is the configured one."""

    spiffe_id: SpiffeId
    jwk: Mapping[str, Any]
    ttl: int = 0


class _Approved(Generic[_T]):
    """A request that passed its checks, to be taken once. Only this module makes one."""

    __slots__ = ("_request",)

    def __init__(self, request: _T, maker: object) -> None:
        if maker is not _MAKER:
            raise Refused("an approval is made by the checks only")
        self._request: _T | None = request

    def take(self) -> _T:
        """The request. Raises Refused the second time."""
        request, self._request = self._request, None
        if request is None:
            raise Refused("this approval was used already: every issuance is checked anew")
        return request


class ApprovedX509(_Approved[X509Request]):
    """Permission to issue one X509-SVID."""

    __slots__ = ()


class ApprovedDownstream(_Approved[DownstreamRequest]):
    """Permission to issue one X.509 authority to a downstream server."""

    __slots__ = ()


class ApprovedJwt(_Approved[JwtRequest]):
    """Permission to issue one JWT-SVID."""

    __slots__ = ()


class ApprovedWit(_Approved[WitRequest]):
    """Permission to issue one WIT-SVID."""

    __slots__ = ()


class WorkloadEntry(Protocol):
    """What is read of a registration entry."""

    @property
    def spiffe_id(self) -> str: ...
    @property
    def dns_names(self) -> Sequence[str]: ...
    @property
    def x509_svid_ttl(self) -> int: ...


def approve_workload(csr: bytes, entry: WorkloadEntry, trust_domain: TrustDomain) -> ApprovedX509:
    """An X509-SVID of an entry, for the key of a CSR that proves possession. Nothing else of the CSR is used."""
    _, public_key = _check_csr(csr, "invalid CSR signature")
    spiffe_id = _entry_id(entry, trust_domain)
    dns_names = tuple(entry.dns_names)
    _check_dns_names(dns_names, "entry")
    common_name = dns_names[0] if dns_names else ""
    subject, name = names.leaf_name_der(common_name), names.leaf_name(common_name)
    return ApprovedX509(X509Request(spiffe_id, public_key, subject, name, dns_names, entry.x509_svid_ttl), _MAKER)


def _entry_id(entry: WorkloadEntry, trust_domain: TrustDomain) -> SpiffeId:
    try:
        spiffe_id = SpiffeId.parse(entry.spiffe_id)
        spiffeid.require_member(trust_domain, spiffe_id)
    except InvalidArgument as error:
        raise InvalidArgument(f"entry has malformed SPIFFE ID: {error}") from error
    return spiffe_id


async def approve_workloads(
    requests: Sequence[tuple[bytes, WorkloadEntry]], trust_domain: TrustDomain
) -> list[ApprovedX509 | InvalidArgument]:
    """`approve_workload` for a batch of CSRs and entries, in order, off the event loop when the batch is big."""

    def approve(request: tuple[bytes, WorkloadEntry]) -> ApprovedX509 | InvalidArgument:
        try:
            return approve_workload(*request, trust_domain)
        except InvalidArgument as error:
            return error

    return await in_chunks(approve, requests)


def approve_agent(csr: bytes, agent_id: SpiffeId, attested_key: bytes | None = None) -> ApprovedX509:
    """An agent's own X509-SVID. The CSR is to prove possession, and nothing else of it is used.

    `attested_key` (DER SubjectPublicKeyInfo) is the one that node attestation has bound the SVID to; None is any. A CSR
    for another key raises Refused (docs/adr/0029-attested-keys.md).
    """
    _, public_key = _check_csr(csr, "invalid CSR signature")
    if attested_key is not None and public_key != attested_key:
        raise Refused("the CSR is for another key than the attested one: ask for an SVID of the key that was certified")
    spiffeid.require_agent(agent_id.trust_domain, agent_id)
    request = X509Request(agent_id, public_key, names.leaf_name_der(), names.leaf_name(), kind=Kind.AGENT)
    return ApprovedX509(request, _MAKER)


def approve_server(public_key: bytes, trust_domain: TrustDomain) -> ApprovedX509:
    """The server's own X509-SVID, for a DER SubjectPublicKeyInfo."""
    server_id = spiffeid.server_id(trust_domain)
    subject, name = names.leaf_name_der(), names.leaf_name()
    return ApprovedX509(X509Request(server_id, _check_key(public_key), subject, name, kind=Kind.SERVER), _MAKER)


def approve_downstream(csr: bytes, ttl: int = 0) -> ApprovedDownstream:
    """An X.509 authority below this server's own, for the key of a CSR that proves possession.

    Nothing else of the CSR is used: such an authority always is the trust domain's.
    """
    _, public_key = _check_csr(csr, "invalid CSR signature")
    return ApprovedDownstream(DownstreamRequest(public_key, max(ttl, 0)), _MAKER)


def approve_mint(csr: bytes, trust_domain: TrustDomain, ttl: int = 0) -> ApprovedX509:
    """An X509-SVID that an operator asks for: SPIFFE ID, DNS names and subject are the CSR's."""
    parsed, public_key = _check_csr(csr, "failed to verify CSR signature")
    uris, dns_names = _alternative_names(parsed)
    if not uris:
        raise InvalidArgument("CSR URI SAN is required")
    if len(uris) > 1:
        raise InvalidArgument("only one URI SAN is expected")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
        spiffeid.require_workload(trust_domain, spiffe_id)
    except InvalidArgument as error:
        raise InvalidArgument(f"CSR URI SAN is invalid: {error}") from error
    _check_dns_names(dns_names, "CSR")
    common_name = dns_names[0] if dns_names else ""
    try:
        subject = names.leaf_name_der(common_name, parsed.subject)
        name = names.leaf_name(common_name, parsed.subject)
    except ValueError as error:
        raise InvalidArgument(f"CSR subject is invalid: {error}") from error
    return ApprovedX509(X509Request(spiffe_id, public_key, subject, name, dns_names, max(ttl, 0)), _MAKER)


def approve_jwt(
    spiffe_id: SpiffeId, audience: Sequence[str], ttl: int = 0, *, include_jti: bool = False
) -> ApprovedJwt:
    """A JWT-SVID of a workload for at least one audience; empty ones are dropped, as SPIRE does."""
    spiffeid.require_workload(spiffe_id.trust_domain, spiffe_id)
    wanted = tuple(each for each in audience if each)
    if not wanted:
        raise InvalidArgument("invalid JWT-SVID audience: cannot be empty")
    if sum(map(len, wanted)) > _MAX_AUDIENCE:
        raise InvalidArgument(f"invalid JWT-SVID audience: longer than {_MAX_AUDIENCE} characters")
    return ApprovedJwt(JwtRequest(spiffe_id, wanted, max(ttl, 0), include_jti), _MAKER)


def approve_wit(spiffe_id: SpiffeId, public_key: bytes, algorithm: str, ttl: int = 0) -> ApprovedWit:
    """A WIT-SVID that an operator asks for, for a DER SubjectPublicKeyInfo whose holder signs with that algorithm."""
    spiffeid.require_workload(spiffe_id.trust_domain, spiffe_id)
    return ApprovedWit(WitRequest(spiffe_id, _bound_jwk(public_key, algorithm, "invalid"), max(ttl, 0)), _MAKER)


def approve_workload_wit(
    public_key: bytes, algorithm: str, entry: WorkloadEntry, trust_domain: TrustDomain
) -> ApprovedWit:
    """A WIT-SVID of an entry. It lives as long as the entry's X509-SVIDs: SPIRE's entries have no lifetime for it."""
    jwk = _bound_jwk(public_key, algorithm, "malformed")
    return ApprovedWit(WitRequest(_entry_id(entry, trust_domain), jwk, entry.x509_svid_ttl), _MAKER)


def _bound_jwk(public_key: bytes, algorithm: str, unreadable: str) -> Mapping[str, Any]:
    """The claim `cnf.jwk` (RFC 7800, 3.2), with the algorithm that the WIMSE draft wants in it."""
    try:
        key = _strong_key(der.public_key(public_key))
    except InvalidArgument as error:
        raise InvalidArgument(f"{unreadable} public key: {error}") from error
    if algorithm not in jws.algorithms_of(key):
        reason = f"unsupported signing algorithm for {_key_name(key)} key: {algorithm[:32]}"
        raise InvalidArgument(f"invalid signing algorithm or key type: {reason}")
    return {"alg": algorithm, **jwks.jwk(key)}


def _key_name(key: der.PublicKey) -> str:
    return "RSA" if isinstance(key, rsa.RSAPublicKey) else f"ec-p{key.curve.key_size}"


_In = TypeVar("_In")
_Out = TypeVar("_Out")


async def in_chunks(function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """Apply a pure function to each item, in order: at once for a few, else in a thread, some at a time."""
    if len(items) <= _INLINE:
        return [function(item) for item in items]

    def apply(chunk: Sequence[_In]) -> list[_Out]:
        return [function(item) for item in chunk]

    results: list[_Out] = []
    for start in range(0, len(items), _CHUNK):
        results += await asyncio.to_thread(apply, items[start : start + _CHUNK])
    return results


def _check_csr(csr: bytes, unproven: str) -> tuple[x509.CertificateSigningRequest, bytes]:
    """Parse a PKCS #10 request (RFC 2986) and check its signature; returns it with its DER SubjectPublicKeyInfo."""
    if len(csr) > _MAX_CSR:
        raise InvalidArgument(f"malformed CSR: longer than {_MAX_CSR} bytes")
    try:
        parsed = x509.load_der_x509_csr(csr)
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidArgument("malformed CSR: not a well-formed PKCS #10 request in DER") from error
    public_key = _strong_key(key)
    try:
        proven = der.proves_possession(parsed, csr)
    except UnsupportedAlgorithm as error:
        raise InvalidArgument(f"{unproven}: unsupported signature algorithm") from error
    if not proven:
        raise InvalidArgument(unproven)
    return parsed, der.subject_public_key_info(public_key)


def _check_key(public_key: bytes) -> bytes:
    return der.subject_public_key_info(_strong_key(der.public_key(public_key)))


def _strong_key(key: object) -> der.PublicKey:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise InvalidArgument("unsupported public key: use ECDSA P-256, P-384 or P-521, or RSA of 2048 to 8192 bits")


def _alternative_names(csr: x509.CertificateSigningRequest) -> tuple[list[str], tuple[str, ...]]:
    """The URIs and DNS names of a CSR."""
    try:
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], ()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise InvalidArgument("malformed CSR: its extensions cannot be read") from error
    return san.get_values_for_type(x509.UniformResourceIdentifier), tuple(san.get_values_for_type(x509.DNSName))


def _check_dns_names(dns_names: Sequence[str], source: str) -> None:
    try:
        for name in dns_names:
            dns.check_dns_name(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"{source} DNS name is invalid: {error}") from error
    try:
        dns.check_wildcard_overlap(dns_names)
    except InvalidArgument as error:
        text = f"{source} DNS name contains a wildcard that covers another non-wildcard name: {error}"
        raise InvalidArgument(text) from error
