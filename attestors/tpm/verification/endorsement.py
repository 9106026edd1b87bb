"""Whether an endorsement key is a TPM's that the operator knows: by a manufacturer's certificate, or by its hash.

A certificate counts with its key only: nothing else of what the node says about its endorsement key is proven before
the credential is activated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestors.tpm.messages import CERTIFICATES, Hello
from attestors.tpm.verification import certificates, names, paths
from attestors.tpm.verification.certificates import Certificate
from attestors.tpm.verification.revocation import may
from attestors.tpm.verification.trust import Trust as Trust
from attestors.tpm.verification.trust import authorities
from attestors.tpm.verification.trust import load as load
from keystores import public_keys
from keystores.tpm import public_area, statements
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused, Unsupported

EK_CERTIFICATE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate."""

_MUST: Final = ("restricted", "decrypt", "fixedTPM", "fixedParent", "sensitiveDataOrigin", "adminWithPolicy")
_MUST_NOT: Final = ("sign",)
_RSA_BITS: Final = frozenset({2048, 3072, 4096})
POLICIES: Final = frozenset(
    map(
        bytes.fromhex,
        (
            "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa",
            "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12",
            (
                "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
                "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea"
            ),
        ),
    )
)
"""PolicyA with SHA-256, of the low range templates, and PolicyB with SHA-256, SHA-384 and SHA-512, of the high range
(TCG EK Credential Profile 2.5, B.6)."""


@dataclass(frozen=True, slots=True)
class Endorsement:
    """`hash` names the node: the hex SHA-256 of the DER SubjectPublicKeyInfo. At least one of the flags is true.

    The texts are those of the certificate, empty where none counts: `manufacturer` is IFX, say, `firmware` 7.85, as it
    was when the TPM was made.
    """

    hash: str
    public: PublicArea
    certified: bool
    listed: bool
    manufacturer: str = ""
    model: str = ""
    firmware: str = ""


def verify(hello: Hello, trust: Trust, now: datetime) -> Endorsement:
    """`now` is aware. Raises InvalidArgument for what is no public area, Refused for a key that nobody vouches for."""
    area = endorsement_key(hello.ek_public)
    der = area.der
    digest = hashlib.sha256(der).hexdigest()
    listed = digest in trust.hashes
    try:
        certificate = _certificate(hello, area, trust, now)
    except (InvalidArgument, Refused) as error:
        if listed:
            return Endorsement(digest, area, certified=False, listed=True)
        raise Refused(f"the endorsement key {digest} is not known here: {error}") from error
    called = names.alternative(certificate.extensions)
    return Endorsement(
        digest,
        area,
        certified=True,
        listed=listed,
        manufacturer=names.manufacturer(called.get(names.TPM_MANUFACTURER, "")),
        model=called.get(names.TPM_MODEL, ""),
        firmware=names.firmware(called.get(names.TPM_VERSION, "")),
    )


def endorsement_key(ek_public: bytes) -> PublicArea:
    """The key in a TPM2B_PUBLIC, if it is made as endorsement keys are (TCG EK Credential Profile 2.5, B.3 and B.4).

    Raises InvalidArgument and Refused.
    """
    if len(ek_public) > statements.LIMIT:
        raise InvalidArgument(f"the endorsement key's public area has {len(ek_public)} bytes, more than any TPM makes")
    try:
        area = public_area.parse(ek_public)
    except Unsupported as error:
        raise Refused(f"the endorsement key cannot be used: {error}") from error
    faults = [f"{name} is not set" for name in _MUST if not area.attributes[name]]
    faults += [f"{name} is set" for name in _MUST_NOT if area.attributes[name]]
    if area.policy not in POLICIES:
        faults.append("its policy is none of the TCG's templates")
    if area.cipher_bits not in {128, 256}:
        faults.append("it has no AES cipher for what is below it")
    if not (
        (isinstance(area.key, rsa.RSAPublicKey) and area.key.key_size in _RSA_BITS)
        or isinstance(area.key, ec.EllipticCurvePublicKey)
    ):
        faults.append("it is no RSA or EC key of a size that templates have")
    if faults:
        raise Refused(f"the key is no endorsement key by the TCG's templates: {', '.join(faults)}")
    return area


def _certificate(hello: Hello, area: PublicArea, trust: Trust, now: datetime) -> Certificate:
    """The certificate of the key, verified. Raises InvalidArgument and Refused."""
    if not trust.anchors:
        missing = "endorsement_ca_path is not set" if trust.hashes else "no CAs and no hashes are configured"
        raise Refused(f"its hash is not listed, and {missing}; add its hash to the file of endorsement_hash_path")
    if not hello.ek_certificates:
        raise Refused(
            "its hash is not listed, and the node has no certificate of it; add its hash to the file of "
            "endorsement_hash_path"
        )
    if len(hello.ek_certificates) > CERTIFICATES:
        raise InvalidArgument(f"there are {len(hello.ek_certificates)} certificates; at most {CERTIFICATES} are read")
    try:
        leaf = certificates.parse(hello.ek_certificates[0])
    except InvalidArgument as error:
        raise Refused(f"its certificate cannot be read: {error}") from error
    if leaf.key is None or area.key is None or public_keys.to_der(leaf.key) != area.der:
        raise Refused("the certificate is of another key")
    _require_endorsement_certificate(leaf)
    paths.verified(
        leaf, _intermediates(hello.ek_certificates[1:]), authorities(trust.anchors, trust.crls), EK_CERTIFICATE, now
    )
    return leaf


def _intermediates(given: Sequence[bytes]) -> list[Certificate]:
    """Those that can be read: an NV chain may have parts that are no certificates, which then lead nowhere."""
    found: list[Certificate] = []
    for one in given:
        try:
            found.append(certificates.parse(one))
        except InvalidArgument:
            continue
    return found


def _require_endorsement_certificate(leaf: Certificate) -> None:
    """What the profile asks of a leaf, where it is there: usages and constraints are missing from many."""
    paths.require_known_extensions(leaf)
    is_ca, _ = paths.basic_constraints(leaf)
    if is_ca:
        raise Refused("the certificate is a CA's, not an endorsement key's")
    purposes = paths.purposes(leaf)
    if purposes is not None and EK_CERTIFICATE not in purposes:
        raise Refused("the certificate is for other purposes than that of an endorsement key (2.23.133.8.1)")
    if not any(may(leaf, bit) for bit in (certificates.KEY_ENCIPHERMENT, certificates.KEY_AGREEMENT)):
        raise Refused("the certificate's key must not encipher or agree on keys, by its key usage")
