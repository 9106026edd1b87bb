"""What TPM2_Certify proves: that a key was made in the attestation key's TPM and cannot leave it."""

from __future__ import annotations

import hmac

from attestors.tpm.messages import Certification
from attestors.tpm.verification.quote import AttestationKey, stated
from keystores.tpm import public_area, statements
from operations.errors import InvalidArgument, Refused, Unsupported


def verify(key: AttestationKey, certification: Certification, nonce: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo of the certified key.

    Raises InvalidArgument for what is no certification, Refused for one of another key or over another nonce, or of a
    key that is not bound to its TPM.
    """
    found = stated(key, certification.statement, certification.signature, nonce)
    if not isinstance(found.attested, statements.Certified):
        raise Refused("the TPM's statement is a quote, not a certification")
    if len(certification.public) > statements.LIMIT:
        raise InvalidArgument("the certified key's public area has more bytes than any TPM makes")
    try:
        area = public_area.parse(certification.public)
        der = area.der
    except Unsupported as error:
        raise Refused(f"the certified key cannot be used: {error}") from error
    if not hmac.compare_digest(area.name, found.attested.name):
        raise Refused("the TPM certified another key than the one that was sent")
    if area.faults:
        raise Refused(f"the certified key was not made in the TPM to stay there and sign: {', '.join(area.faults)}")
    return der
