"""The storage key that wraps the blobs: found at its handle, or made anew from its template, which gives the same key.

Neither 0x81000001 nor any new persistent handle is needed: the SRK is used where it is, and derived where it is not.
What was found once is recorded beside the blobs and must be found again.
"""

from __future__ import annotations

from typing import Final

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_SE, TPM2B_SENSITIVE_CREATE, TPMA_SESSION, TSS2_Exception

from keystores.tpm import templates
from keystores.tpm.failures import Fault, not_there
from keystores.tpm.messages import Place
from keystores.tpm.responses import HANDLE, Meaning, error_number, is_tpm, meaning

SRK_HANDLE: Final = 0x81000001
"""Where the Provisioning Guidance (7.8) has the SRK, if anything is there."""
OWNER: Final = int(TPM2_RH.OWNER)
_SRK, _PRIMARY = "SRK", "primary"
_TEMPLATES: Final = ("ec-p256", "rsa-2048")


class Parent:
    """A parent in the TPM. A transient one has to be flushed by whoever found it."""

    def __init__(self, esapi: ESAPI, handle: ESYS_TR, source: str, *, transient: bool) -> None:
        self.handle: Final = handle
        self.source: Final = source
        self.transient: Final = transient
        self.name: Final = bytes(esapi.tr_get_name(handle))


class Parents:
    """Finds the parent that the place names, and remembers which it was."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._source = place.source
        self._name = place.name

    @property
    def source(self) -> str:
        """Where the parent was found, or how it was made."""
        return self._source

    def find(self, esapi: ESAPI) -> Parent:
        """Raises Fault for a parent that is missing, unfit, or another one than before; TSS2_Exception."""
        place = self._place
        if place.parent is None:
            found = self._srk(esapi)
        elif place.parent == OWNER:
            found = self._derived(esapi, zeros=False)
        else:
            found = self._required(esapi, place.parent)
        if self._name and found.name != self._name:
            if found.transient:
                esapi.flush_context(found.handle)
            raise Fault(
                "Refused",
                f"the blobs belong to another TPM or parent: they were made under {self._name.hex()[4:20]}…, and this "
                f"TPM's {found.source} is {found.name.hex()[4:20]}…; a TPM that was cleared is another one, too",
            )
        self._source, self._name = found.source, found.name
        return found

    def _srk(self, esapi: ESAPI) -> Parent:
        """The one of before; else the persistent one if it is fit; else a primary key, ECC where the TPM can."""
        form, _, kind = self._source.partition(":")
        if kind in _TEMPLATES:
            return self._primary(esapi, kind, zeros=form == _SRK)
        persistent = self._persistent(esapi, SRK_HANDLE)
        if persistent is not None and (not self._name or persistent.name == self._name):
            return persistent
        if not self._name:
            return self._derived(esapi, zeros=True)
        # It was at its handle, and is gone from there: the templates may still give the same key.
        for candidate in _TEMPLATES:
            for zeros in (True, False):
                made = self._primary(esapi, candidate, zeros=zeros)
                if made.name == self._name:
                    return made
                esapi.flush_context(made.handle)
        return self._primary(esapi, _TEMPLATES[0], zeros=True)

    def _derived(self, esapi: ESAPI, *, zeros: bool) -> Parent:
        try:
            return self._primary(esapi, _TEMPLATES[0], zeros=zeros)
        except TSS2_Exception as error:
            if meaning(int(error.rc)) is not Meaning.UNSUPPORTED:
                raise
        return self._primary(esapi, _TEMPLATES[1], zeros=zeros)

    def _primary(self, esapi: ESAPI, kind: str, *, zeros: bool) -> Parent:
        esapi.tr_set_auth(ESYS_TR.OWNER, self._place.owner_auth)
        session = ESYS_TR.PASSWORD
        if self._place.owner_auth:
            # There is no key to salt with yet; an HMAC keeps the authorization off the bus.
            session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, "aes128cfb", TPM2_ALG.SHA256)
            esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
        try:
            handle, *_ = esapi.create_primary(
                TPM2B_SENSITIVE_CREATE(), templates.storage_key(kind, zeros=zeros), ESYS_TR.OWNER, session1=session
            )
        except TSS2_Exception as error:
            if meaning(int(error.rc)) is Meaning.REFUSED:
                line = (
                    "the TPM wants the owner's authorization to derive the SRK: set owner_auth_file or "
                    "owner_auth_credential to the right one, or make the SRK persistent at 0x81000001"
                )
                raise Fault("Refused", line, code=int(error.rc), reason=str(error)) from error
            raise
        finally:
            if session is not ESYS_TR.PASSWORD:
                esapi.flush_context(session)
        return Parent(esapi, handle, f"{_SRK if zeros else _PRIMARY}:{kind}", transient=True)

    def _required(self, esapi: ESAPI, handle: int) -> Parent:
        found = self._persistent(esapi, handle, required=True)
        if found is None:
            raise Fault("Refused", f"parent: the key at {handle:#010x} is no storage key, which wraps others")
        return found

    def _persistent(self, esapi: ESAPI, handle: int, *, required: bool = False) -> Parent | None:
        """The key at a handle, or None where there is none that is fit."""
        try:
            key = esapi.tr_from_tpmpublic(handle)
        except TSS2_Exception as error:
            code = int(error.rc)
            if not is_tpm(code) or error_number(code) != HANDLE:
                raise
            if required:
                raise not_there(handle, error) from error
            return None
        public, *_ = esapi.read_public(key)
        if not templates.is_storage_parent(public):
            esapi.tr_close(key)
            return None
        esapi.tr_set_auth(key, self._place.parent_auth)
        return Parent(esapi, key, f"{handle:#010x}", transient=False)
