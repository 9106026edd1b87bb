"""Node attestation on the device: the attestation key below the endorsement key, quotes, activation, certification.

The attestation key is in the endorsement hierarchy, so that the TPM states its counters and its firmware's version as
they are (TPM 2.0 Library, part 1, 36.7). Nothing stays in the TPM: three objects and three sessions suffice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final

from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPML_PCR_SELECTION,
    TPMS_ATTEST,
    TPMT_SIG_SCHEME,
    TSS2_Exception,
)

from keystores.tpm import endorsements, templates
from keystores.tpm.device import Device, unmarshalled
from keystores.tpm.failures import Fault
from keystores.tpm.messages import Attest, Attested, Blob, Endorse, Endorsed, StatedKey, Wrapped
from keystores.tpm.responses import FAILURE, INTEGRITY, VALUE, Meaning, error_number, meaning

Beat = Callable[[], None]
TRIES: Final = 20
"""Quotes until one is about registers that did not change meanwhile."""
_AT_ONCE: Final = 8
"""Registers that TPM2_PCR_Read gives at most."""
_ACTIVATION: Final = frozenset({FAILURE, VALUE, INTEGRITY, 0x095, 0x09A})
"""How a credential fails that is for another endorsement or attestation key; the last ones are SIZE and INSUFFICIENT.

libtpms says FAILURE where an RSA key does not open it, and is not in failure mode for that.
"""


def endorse(device: Device, request: Endorse, beat: Beat) -> Endorsed:
    """The endorsement key with its certificates, and an attestation key: the given one if the TPM loads it."""
    template = (
        endorsements.named(request.template) if request.template else endorsements.chosen(device, request.algorithm)
    )
    beat()
    own = endorsements.certificate(device, template)
    certificates = [own, *endorsements.chain(device)] if own else []
    device.make_room(0)
    with endorsements.loaded(device, template, request.auth) as endorsement:
        beat()
        public, *_ = device.esapi.read_public(endorsement, session1=device.session())
        key = _kept_or_new(device, endorsement, public, request)
    return Endorsed(template=template.name, public=public.marshal(), certificates=certificates, key=key)


def _kept_or_new(device: Device, endorsement: ESYS_TR, public: TPM2B_PUBLIC, request: Endorse) -> Wrapped:
    if request.key is not None:
        try:
            device.esapi.flush_context(_load(device, endorsement, public, request.key, request.auth))
        except Fault as fault:
            if fault.failed.kind != "PermanentlyUnusable":
                raise
        else:
            return Wrapped(public=request.key.public, private=request.key.private)
    session = endorsements.authorization(device, public, request.auth)
    with _policy(device):
        private, made, *_ = device.esapi.create(
            endorsement, TPM2B_SENSITIVE_CREATE(), templates.attestation_key(), session1=session
        )
    return Wrapped(public=made.marshal(), private=private.marshal())


def _load(device: Device, endorsement: ESYS_TR, public: TPM2B_PUBLIC, key: Blob, auth: bytes) -> ESYS_TR:
    """Raises Fault, PermanentlyUnusable for a key that is not of this endorsement key."""
    private, area = unmarshalled(key)
    session = endorsements.authorization(device, public, auth)
    try:
        with _policy(device):
            return device.esapi.load(endorsement, private, area, session1=session)
    except TSS2_Exception as error:
        if meaning(int(error.rc)) is not Meaning.INTEGRITY:
            raise
        line = "the TPM does not load the attestation key: another TPM or endorsement key made it"
        raise Fault("PermanentlyUnusable", line, code=int(error.rc), reason=str(error)) from error


@contextmanager
def _policy(device: Device) -> Generator[None]:
    """One use of the endorsement key; after a failure the policy session is of no use any more."""
    try:
        yield
    except TSS2_Exception as error:
        device.end_policy_session()
        raise endorsements.explained(error) from error


def attest(device: Device, request: Attest, beat: Beat) -> Attested:
    """Open the credential if there is one, quote, and certify the subject if there is one."""
    device.make_room(0)
    template = endorsements.named(request.template)
    secret = b""
    with endorsements.loaded(device, template, request.auth) as endorsement:
        beat()
        public, *_ = device.esapi.read_public(endorsement, session1=device.session())
        signer = _load(device, endorsement, public, request.key, request.auth)
        try:
            if request.credential:
                secret = _activate(device, endorsement, public, signer, request)
        except BaseException:
            _flush(device, signer)
            raise
    try:
        beat()
        quote, signature, values = _quote(device, signer, request, beat)
        certified = None if request.subject is None else _certify(device, signer, request.subject, request.nonce)
    finally:
        _flush(device, signer)
    return Attested(secret=secret, quote=quote, signature=signature, pcrs=values, certified=certified)


def _flush(device: Device, handle: ESYS_TR) -> None:
    with suppress(TSS2_Exception):
        device.esapi.flush_context(handle)


def _activate(device: Device, endorsement: ESYS_TR, public: TPM2B_PUBLIC, signer: ESYS_TR, request: Attest) -> bytes:
    try:
        credential, _ = TPM2B_ID_OBJECT.unmarshal(request.credential)
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(request.secret)
    except TSS2_Exception as error:
        raise Fault("InvalidArgument", "the server's credential is damaged", reason=str(error)) from error
    session = endorsements.authorization(device, public, request.auth)
    try:
        with _policy(device):
            opened = device.esapi.activate_credential(
                signer, endorsement, credential, secret, session1=ESYS_TR.PASSWORD, session2=session
            )
    except TSS2_Exception as error:
        if error_number(int(error.rc)) not in _ACTIVATION:
            raise
        device.esapi.read_public(signer)  # a TPM in failure mode does not do this either
        line = "the TPM does not open the server's credential: it was made for another endorsement or attestation key"
        raise Fault("Refused", line, code=int(error.rc), reason=str(error)) from error
    return bytes(opened)


def _quote(device: Device, signer: ESYS_TR, request: Attest, beat: Beat) -> tuple[bytes, bytes, dict[int, bytes]]:
    """A quote and the values that it is about: registers are read until none changed between the two."""
    bank, numbers = request.bank, tuple(sorted(set(request.pcrs)))
    selection = templates.pcr_selection(bank, numbers) if numbers else TPML_PCR_SELECTION()
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
    values = _read(device, bank, numbers)
    for _ in range(TRIES):
        stated, signature = device.esapi.quote(signer, selection, request.nonce, scheme, session1=device.session())
        statement = bytes(stated)
        if _is_about(statement, values):
            return statement, signature.marshal(), values
        values = _read(device, bank, numbers)
        if _is_about(statement, values):
            return statement, signature.marshal(), values
        beat()
    raise Fault(
        "TemporarilyUnavailable", f"the TPM's registers changed during each of {TRIES} quotes; it is tried again later"
    )


def _is_about(statement: bytes, values: dict[int, bytes]) -> bool:
    stated, _ = TPMS_ATTEST.unmarshal(statement)
    digest = hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()
    return bytes(stated.attested.quote.pcrDigest) == digest


def _read(device: Device, bank: str, numbers: tuple[int, ...]) -> dict[int, bytes]:
    """Raises Fault for a bank that the TPM does not keep."""
    values: dict[int, bytes] = {}
    for start in range(0, len(numbers), _AT_ONCE):
        wanted = numbers[start : start + _AT_ONCE]
        _, _, digests = device.esapi.pcr_read(templates.pcr_selection(bank, wanted))
        if len(digests) != len(wanted):
            raise Fault(
                "Unsupported",
                f"the TPM keeps no {bank} bank of registers: activate it in the firmware (tpm2_getcap pcrs shows the "
                "active ones), or let the server's pcr_bank name another",
            )
        values |= zip(wanted, (bytes(digest) for digest in digests), strict=True)
    return values


def _certify(device: Device, signer: ESYS_TR, subject: Blob, nonce: bytes) -> StatedKey:
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
    statement, signature = device.esapi.certify(
        device.load(subject), signer, nonce, scheme, session1=device.session(), session2=ESYS_TR.PASSWORD
    )
    return StatedKey(statement=bytes(statement), signature=signature.marshal())
