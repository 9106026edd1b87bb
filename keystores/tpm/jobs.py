"""What the worker's process can be asked: each request's work on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_PT,
    TPM2_PT_FIRMWARE,
    TPM2_SE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    TPMT_SIGNATURE,
    TSS2_Exception,
)

from keystores.tpm import attestation, templates
from keystores.tpm.configuration import pcr_selection
from keystores.tpm.device import Device
from keystores.tpm.failures import Fault
from keystores.tpm.messages import (
    Attest,
    Blob,
    Certified,
    Certify,
    Create,
    Describe,
    Described,
    Endorse,
    LoadedKey,
    Probe,
    Probed,
    Reply,
    Request,
    Seal,
    Sign,
    Signed,
    Unseal,
    Unsealed,
    Wrapped,
)
from keystores.tpm.responses import POLICY_FAIL, error_number

KEY_TYPES: Final = ("ec-p256", "ec-p384", "rsa-2048")
Beat = Callable[[], None]
_ALGORITHMS: Final = {"ecdsa": TPM2_ALG.ECDSA, "rsassa": TPM2_ALG.RSASSA, "rsapss": TPM2_ALG.RSAPSS}


def answer(device: Device, request: Request, beat: Beat) -> Reply:
    """Do what the request asks. Raises Fault."""
    match request:
        case Sign():
            return Signed(signatures=_sign(device, request, beat))
        case Probe():
            return device.run(lambda: _probe(device))
        case Create():
            return _create(device, request)
        case Describe():
            return device.run(lambda: _describe(device, request.key))
        case Certify():
            return device.run(lambda: _certify(device, request))
        case Seal():
            return device.run(lambda: _seal(device, request))
        case Unseal():
            return device.run(lambda: _unseal(device, request.blob))
        case Endorse():
            return device.run(lambda: attestation.endorse(device, request, beat))
        case Attest():
            return device.run(lambda: attestation.attest(device, request, beat))
        case _:
            raise Fault("InvalidArgument", f"{type(request).__name__} has no answer")


def _probe(device: Device) -> Probed:
    with device.parent() as parent:
        return Probed(source=parent.source, name=parent.name, tpm=_tpm(device))


def _tpm(device: Device) -> str:
    """Manufacturer and firmware version, as tpm2_getcap properties-fixed has them."""
    values: list[int] = []
    for wanted in (TPM2_PT.MANUFACTURER, TPM2_PT_FIRMWARE.VERSION_1):
        _, found = device.esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, wanted, 1)
        values.append(int(found.data.tpmProperties[0].value))
    manufacturer = values[0].to_bytes(4).rstrip(b"\0 ").decode("ascii", "replace")
    return f"{manufacturer} {values[1] >> 16}.{values[1] & 0xFFFF}"


def _create(device: Device, request: Create) -> Wrapped:
    if request.key_type not in KEY_TYPES:
        raise _lacks(f"{request.key_type} keys")
    try:
        return device.run(lambda: _made(device, templates.signing_key(request.key_type, _policy(device, request.pcrs))))
    except Fault as fault:
        if fault.failed.kind == "Unsupported":
            raise _lacks(f"{request.key_type} keys", fault) from fault
        raise


def _lacks(what: str, cause: Fault | None = None) -> Fault:
    code, reason = (cause.failed.code, cause.failed.reason) if cause is not None else (0, "")
    choice = ", ".join(KEY_TYPES)
    return Fault("Unsupported", f"this TPM makes no {what}; TPMs may have {choice}", code=code, reason=reason)


def _made(device: Device, template: TPM2B_PUBLIC, data: bytes = b"") -> Wrapped:
    """A new object under the parent. It takes up nothing in the TPM, so an answer that is lost leaves nothing."""
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=data))
    with device.parent() as parent:
        private, public, *_ = device.esapi.create(parent.handle, sensitive, template, session1=device.session())
    return Wrapped(public=public.marshal(), private=private.marshal())


def _policy(device: Device, pcrs: str | None) -> bytes:
    """The policy digest of the PCRs' values now; empty for no policy."""
    if pcrs is None:
        return b""
    esapi = device.esapi
    trial = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
    try:
        esapi.policy_pcr(trial, b"", templates.pcr_selection(*pcr_selection(pcrs)))
        return bytes(esapi.policy_get_digest(trial))
    finally:
        esapi.flush_context(trial)


def _describe(device: Device, key: LoadedKey) -> Described:
    public, name, _ = device.esapi.read_public(device.load(key), session1=device.session())
    return Described(public=public.marshal(), name=bytes(name))


def _authorized(device: Device, key: LoadedKey, use: Callable[[ESYS_TR, ESYS_TR], object]) -> None:
    """Use the key by the session that its authorization asks for. Raises Fault when its PCRs have changed."""
    handle = device.load(key)
    if isinstance(key, Blob) and key.pcrs is not None:
        session = device.policy_session()
        try:
            device.esapi.policy_pcr(session, b"", templates.pcr_selection(*pcr_selection(key.pcrs)))
            use(handle, session)
        except TSS2_Exception as error:
            device.end_policy_session()
            if error_number(int(error.rc)) == POLICY_FAIL:
                raise Fault(
                    "Refused",
                    f"the key is bound to PCRs {key.pcrs}, whose values are not those of its making: the machine "
                    "booted or ran other software; boot the former one, or move keys_path away to have new keys",
                    code=int(error.rc),
                    reason=str(error),
                ) from error
            raise
    else:
        use(handle, device.session())


def _sign(device: Device, request: Sign, beat: Beat) -> list[bytes]:
    """One after the other: whatever happens to the TPM in between, what is signed stays signed."""
    signatures: list[bytes] = []
    try:
        for digest in request.digests:
            signatures.append(device.run(partial(_signature, device, request, digest)))
            beat()
    except Fault as fault:
        if fault.failed.kind == "Unsupported":
            raise Fault(
                "Unsupported",
                f"this TPM does not sign by {request.scheme} with {request.hash}",
                code=fault.failed.code,
                reason=fault.failed.reason,
            ) from fault
        raise
    return signatures


def _signature(device: Device, request: Sign, digest: bytes) -> bytes:
    made: list[TPMT_SIGNATURE] = []
    scheme = templates.scheme(_ALGORITHMS[request.scheme], templates.HASHES[request.hash])

    def use(handle: ESYS_TR, session: ESYS_TR) -> None:
        made.append(device.esapi.sign(handle, digest, scheme, templates.no_ticket(), session1=session))

    _authorized(device, request.key, use)
    return _encoded(made[0])


def _encoded(signature: TPMT_SIGNATURE) -> bytes:
    match int(signature.sigAlg):
        case TPM2_ALG.ECDSA:
            pair = signature.signature.ecdsa
            r, s = bytes(pair.signatureR), bytes(pair.signatureS)
            return encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
        case TPM2_ALG.RSASSA:
            return bytes(signature.signature.rsassa.sig)
        case TPM2_ALG.RSAPSS:
            return bytes(signature.signature.rsapss.sig)
        case other:
            raise Fault("PermanentlyUnusable", f"the TPM signed by algorithm {other:#06x}, which nobody asked for")


def _certify(device: Device, request: Certify) -> Certified:
    """Two objects besides the parent: as many as a bare TPM has room for."""
    device.make_room(0)
    esapi = device.esapi
    made = _made(device, templates.attestation_key())
    device.load(request.key)
    signer = Blob(public=made.public, private=made.private)
    attester = device.load(signer)
    subject = device.load(request.key)
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
    statement, signature = esapi.certify(
        subject, attester, request.nonce, scheme, session1=device.session(), session2=ESYS_TR.PASSWORD
    )
    device.forget(signer)
    return Certified(statement=bytes(statement), signature=_encoded(signature), signer=made.public)


def _seal(device: Device, request: Seal) -> Wrapped:
    data = bytes(device.esapi.get_random(request.size, session1=device.session()))
    if len(data) != request.size:
        raise Fault("PermanentlyUnusable", f"the TPM gave {len(data)} random bytes in place of {request.size}")
    return _made(device, templates.sealed(_policy(device, request.pcrs)), data)


def _unseal(device: Device, blob: Blob) -> Unsealed:
    data: list[bytes] = []

    def use(handle: ESYS_TR, session: ESYS_TR) -> None:
        data.append(bytes(device.esapi.unseal(handle, session1=session)))

    _authorized(device, blob, use)
    return Unsealed(data=data[0])
