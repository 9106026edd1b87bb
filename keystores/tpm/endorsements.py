"""The TPM's endorsement key: its templates, its certificates in NV, and the key itself for as long as it is used.

Templates, NV indices and handles are those of the TCG EK Credential Profile for TPM 2.0 (2.2.1.4, 2.2.1.5, B.3, B.4).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_DIGEST,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPML_DIGEST,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TPMU_PUBLIC_ID,
    TSS2_Exception,
)

from keystores.tpm import nv, templates
from keystores.tpm.device import Device
from keystores.tpm.failures import Fault
from keystores.tpm.responses import HANDLE, HIERARCHY, POLICY_FAIL, Meaning, error_number, is_tpm, meaning

CHAIN: Final = (0x01C00100, 0x01C001FF)
"""NV indices of the certificates above the endorsement key's own."""
CHAIN_LIMIT: Final = 64 << 10
"""Bytes of them."""
_HERE: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
_EK: Final = _HERE | TPMA_OBJECT.ADMINWITHPOLICY | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT


@dataclass(frozen=True, slots=True)
class _Policies:
    """`secret` is PolicySecret of the endorsement hierarchy, `authorized` PolicyAuthorizeNV of the index 0x01C07F01,
    `either` the PolicyOR of both: A, C and B of the profile."""

    secret: bytes
    authorized: bytes
    either: bytes


_POLICIES: Final = {
    TPM2_ALG.SHA256: _Policies(
        bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"),
        bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde"),
        bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"),
    ),
    TPM2_ALG.SHA384: _Policies(
        bytes.fromhex(
            "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53"
        ),
        bytes.fromhex(
            "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165"
        ),
        bytes.fromhex(
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Template:
    """`certificate` is an NV index; those of a nonce and of a template, which change the key, follow it.

    `handle` is where the key is persistent, if it is anywhere.
    """

    name: str
    kind: str
    certificate: int
    handle: int
    high: bool = False
    name_hash: int = TPM2_ALG.SHA256

    @property
    def algorithm(self) -> str:
        return "rsa" if self.kind.startswith("rsa") else "ecc"

    @property
    def adjustments(self) -> tuple[int, int | None]:
        """NV indices of a template that replaces this one, and of a nonce for its unique field."""
        if self.high:
            return self.certificate + 1, None
        return self.certificate + 2, self.certificate + 1

    def public(self) -> TPM2B_PUBLIC:
        if self.high:
            return templates.endorsement_key(
                self.kind,
                _EK | TPMA_OBJECT.USERWITHAUTH,
                _POLICIES[self.name_hash].either,
                self.name_hash,
                TPMU_PUBLIC_ID(),
            )
        zeros = TPMU_PUBLIC_ID(rsa=bytes(256))
        if self.algorithm == "ecc":
            zeros = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=bytes(32), y=bytes(32)))
        return templates.endorsement_key(self.kind, _EK, _POLICIES[self.name_hash].secret, self.name_hash, zeros)


TEMPLATES: Final = (
    Template("rsa-2048", "rsa-2048", 0x01C00002, 0x81010001),
    Template("rsa-2048-high", "rsa-2048", 0x01C00012, 0x81010012, high=True),
    Template("ecc-p256", "ec-p256", 0x01C0000A, 0x81010002),
    Template("ecc-p256-high", "ec-p256", 0x01C00014, 0x81010014, high=True),
    Template("ecc-p384-high", "ec-p384", 0x01C00016, 0x81010016, high=True, name_hash=TPM2_ALG.SHA384),
)
"""In the order in which they are looked for."""


def named(name: str) -> Template:
    """Raises Fault."""
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise Fault("InvalidArgument", f"{name!r} is no template of an endorsement key that this version knows")


def chosen(device: Device, algorithm: str) -> Template:
    """The first one that has a certificate; without any RSA-2048, or P-256 where `algorithm` is ecc."""
    candidates = [each for each in TEMPLATES if algorithm in {"auto", each.algorithm}]
    present = set(nv.indices(device.esapi, candidates[0].certificate & 0xFFFFFF00, CHAIN[0] - 1))
    for template in candidates:
        if template.certificate in present and certificate(device, template):
            return template
    return candidates[0]


def certificate(device: Device, template: Template) -> bytes:
    """The key's own certificate as DER; empty where the manufacturer left none, or none that can be read."""
    if not nv.indices(device.esapi, template.certificate, template.certificate):
        return b""
    [first, *_] = nv.elements(nv.read(device, template.certificate)) or [b""]
    return first


def chain(device: Device) -> list[bytes]:
    """The certificates above it that the TPM carries, as DER. They may go on from one index to the next."""
    found = nv.indices(device.esapi, *CHAIN)
    data = b""
    for index in found:
        data += nv.read(device, index)
        if len(data) > CHAIN_LIMIT:
            break
    return nv.elements(data[:CHAIN_LIMIT])


@contextmanager
def loaded(device: Device, template: Template, auth: bytes) -> Generator[ESYS_TR]:
    """The key in the TPM while the block lasts: the persistent one if it is it, else made from its template."""
    wanted = _adjusted(device, template)
    persistent = _persistent(device.esapi, template.handle, wanted)
    if persistent is not None:
        try:
            yield persistent
        finally:
            with suppress(TSS2_Exception):
                device.esapi.tr_close(persistent)
        return
    with device.kept(template.name, lambda: _primary(device, wanted, auth)) as made:
        yield made


def authorization(device: Device, public: TPM2B_PUBLIC, auth: bytes) -> ESYS_TR:
    """A session that authorizes the next use of the key, and encrypts its first parameters.

    It is by the key's policy, also where an empty authorization would do, as in the high range: these keys are not
    noDA, so that a loss of power after such a use counts as a guess. Raises Fault where the hierarchy does not let it.
    """
    policies = _POLICIES.get(int(public.publicArea.nameAlg))
    if policies is None:
        raise Fault("Unsupported", "the endorsement key's name algorithm is neither SHA-256 nor SHA-384")
    session = device.policy_session(int(public.publicArea.nameAlg))
    esapi = device.esapi
    esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, auth)
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0, session1=device.session())
        if bytes(public.publicArea.authPolicy) == policies.either:
            branches = TPML_DIGEST([TPM2B_DIGEST(policies.secret), TPM2B_DIGEST(policies.authorized)])
            esapi.policy_or(session, branches)
    except TSS2_Exception as error:
        device.end_policy_session()
        raise explained(error) from error
    return session


def explained(error: TSS2_Exception) -> Exception:
    """The Fault for what only an operator can mend, else the error itself."""
    code = int(error.rc)
    if not is_tpm(code):
        return error
    if error_number(code) == HIERARCHY:
        line = (
            "the TPM's endorsement hierarchy is disabled, and with it the endorsement key: enable it in the firmware "
            "(tpm2_getcap properties-variable shows ehEnable)"
        )
    elif meaning(code) is Meaning.REFUSED:
        line = (
            "the TPM wants the endorsement hierarchy's authorization: set endorsement_auth_file or "
            "endorsement_auth_credential to the right one"
        )
    elif error_number(code) == POLICY_FAIL:
        line = (
            "the endorsement key does not have the policy of the TCG's profile, so that it cannot be used here: was it "
            "made persistent by other software? tpm2_evictcontrol removes it from its handle"
        )
    else:
        return error
    return Fault("Refused", line, code=code, reason=str(error))


def _adjusted(device: Device, template: Template) -> TPM2B_PUBLIC:
    """The template as the manufacturer has it: another one in NV, or a nonce."""
    public = template.public()
    other, nonce = template.adjustments
    present = set(nv.indices(device.esapi, template.certificate, template.certificate + 2))
    if other in present:
        try:
            area, rest = TPMT_PUBLIC.unmarshal(nv.read(device, other))
        except TSS2_Exception as error:
            line = f"the endorsement key's template in NV {other:#010x} is damaged; set ek to the other kind of key"
            raise Fault("PermanentlyUnusable", line, reason=str(error)) from error
        del rest  # padding
        return TPM2B_PUBLIC(area)
    if nonce is not None and nonce in present:
        value = nv.read(device, nonce)
        if template.algorithm == "rsa":
            public.publicArea.unique = TPMU_PUBLIC_ID(rsa=value[:256].ljust(256, b"\0"))
        else:
            x, y = value[:32].ljust(32, b"\0"), value[32:64].ljust(32, b"\0")
            public.publicArea.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=x, y=y))
    return public


def _persistent(esapi: ESAPI, handle: int, wanted: TPM2B_PUBLIC) -> ESYS_TR | None:
    """The key at the handle, if it is of the template."""
    try:
        key = esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        code = int(error.rc)
        if is_tpm(code) and error_number(code) == HANDLE:
            return None
        raise
    public, *_ = esapi.read_public(key)
    if _without_key(public) == _without_key(wanted):
        esapi.tr_set_auth(key, b"")
        return key
    esapi.tr_close(key)
    return None


def _without_key(public: TPM2B_PUBLIC) -> bytes:
    area, _ = TPMT_PUBLIC.unmarshal(public.publicArea.marshal())
    area.unique = TPMU_PUBLIC_ID()
    return bytes(area.marshal())


def _primary(device: Device, template: TPM2B_PUBLIC, auth: bytes) -> ESYS_TR:
    esapi = device.esapi
    session = device.session()
    esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, auth)
    try:
        handle, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT, session1=session)
    except TSS2_Exception as error:
        raise explained(error) from error
    return handle
