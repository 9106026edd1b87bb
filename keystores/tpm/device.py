"""A connection to a TPM: context, parent, session and loaded keys, made anew when they are lost. It blocks.

What is held in the TPM is little and short-lived: a bare TPM has room for three objects and three sessions, and a
session that lies idle while others work ends up beyond the TPM's context gap. The parent is loaded only while a key is.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPM2_SU,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPMA_SESSION,
    TPMS_CONTEXT,
    TSS2_Exception,
)

from keystores.tpm.failures import Fault, failure, not_there
from keystores.tpm.messages import Blob, LoadedKey, Persistent, Place
from keystores.tpm.parents import Parent, Parents
from keystores.tpm.responses import HANDLE, Meaning, error_number, is_tpm, meaning

T = TypeVar("T")

LOADED_LIMIT: Final = 2
SESSION_SECONDS: Final = 60.0
SESSION_USES: Final = 1000
FIRST_WAIT, LONGEST_WAIT = 0.05, 1.6
"""Seconds before a busy TPM is asked again; each time twice as long."""
LOADED_SESSION_FIRST, TRANSIENT_FIRST = 0x02000000, 0x80000000
REMAKES: Final = 2
"""New contexts for one piece of work."""

_PARENT: Final = "parent"
_ENCRYPTED: Final = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT


class _Session:
    """An HMAC or policy session salted to the parent, which encrypts first parameters with AES-128-CFB."""

    def __init__(self, esapi: ESAPI, parent: ESYS_TR, kind: int, hash_algorithm: int) -> None:
        self.hash: Final = hash_algorithm
        self.handle: Final = esapi.start_auth_session(parent, ESYS_TR.NONE, kind, "aes128cfb", hash_algorithm)
        esapi.trsess_set_attributes(self.handle, _ENCRYPTED)
        self._uses = 0
        self._until = time.monotonic() + SESSION_SECONDS

    def use(self) -> bool:
        """Count a use. False when the session is worn."""
        self._uses += 1
        return self._uses <= SESSION_USES and time.monotonic() < self._until


def at_handle(esapi: ESAPI, handle: int) -> ESYS_TR:
    """The persistent object at a handle. Raises Fault where there is none."""
    try:
        return esapi.tr_from_tpmpublic(handle)
    except TSS2_Exception as error:
        if is_tpm(int(error.rc)) and error_number(int(error.rc)) == HANDLE:
            raise not_there(handle, error) from error
        raise


def _waits(seconds: float) -> Iterator[float]:
    """Growing waits, that many seconds in all."""
    wait = FIRST_WAIT
    while seconds > 0:
        yield min(wait, seconds)
        seconds -= wait
        wait = min(2 * wait, LONGEST_WAIT)


def unmarshalled(blob: Blob) -> tuple[TPM2B_PRIVATE, TPM2B_PUBLIC]:
    """Raises Fault for what is no blob."""
    try:
        private, _ = TPM2B_PRIVATE.unmarshal(blob.private)
        public, _ = TPM2B_PUBLIC.unmarshal(blob.public)
    except TSS2_Exception as error:
        raise Fault("PermanentlyUnusable", "the blob is damaged", code=int(error.rc), reason=str(error)) from error
    return private, public


def _known(blob: Blob) -> bytes:
    return hashlib.sha256(blob.public + blob.private).digest()


class Device:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._parents = Parents(place)
        self._esapi: ESAPI | None = None
        self._parent: Parent | None = None
        self._contexts: dict[str, TPMS_CONTEXT] = {}
        self._sessions: dict[int, _Session] = {}
        self._loaded: OrderedDict[bytes, ESYS_TR] = OrderedDict()
        self._persistent: dict[int, ESYS_TR] = {}
        self._left: list[int] = []

    def run(self, work: Callable[[], T]) -> T:
        """Do work that may be done again: a busy TPM is given time, a lost context is made anew.

        Raises Fault, of the kind TemporarilyUnavailable while the TPM is away.
        """
        waits, remakes = _waits(self._place.busy), REMAKES
        while True:
            try:
                return work()
            except TSS2_Exception as error:
                if not self._recovered(meaning(int(error.rc)), waits, remakes):
                    self.drop()
                    raise failure(error, self._place.tcti) from error
                remakes -= meaning(int(error.rc)) is not Meaning.WAIT

    def _recovered(self, found: Meaning, waits: Iterator[float], remakes: int) -> bool:
        """Whether the work may be tried again, after what its error asks for was done."""
        if found is Meaning.WAIT:
            delay = next(waits, None)
            if delay is not None:
                time.sleep(delay)
            return delay is not None
        if not remakes or found not in {Meaning.GONE, Meaning.START, Meaning.FULL}:
            return False
        self.drop()
        with suppress(TSS2_Exception):
            if found is Meaning.START:
                self.esapi.startup(TPM2_SU.CLEAR)
            elif found is Meaning.FULL:
                self._clear_away()
        return True

    @property
    def esapi(self) -> ESAPI:
        if self._esapi is None:
            self._esapi = ESAPI(self._place.tcti)
            self._flush_left(self._esapi)
        return self._esapi

    @contextmanager
    def parent(self) -> Generator[Parent]:
        """The parent, in the TPM for as long as the block lasts. Nested blocks share it."""
        if self._parent is not None:
            yield self._parent
            return
        parent = self._parent = self._load_parent()
        try:
            yield parent
        finally:
            self._parent = None
            if parent.transient:
                # After an error of the transport the context is dropped as a whole.
                with suppress(TSS2_Exception):
                    self.esapi.flush_context(parent.handle)

    def _load_parent(self) -> Parent:
        handle = self._restored(_PARENT)
        if handle is not None:
            return Parent(self.esapi, handle, self._parents.source, transient=True)
        found = self._parents.find(self.esapi)
        if found.transient:
            self._contexts[_PARENT] = self.esapi.context_save(found.handle)
        return found

    @contextmanager
    def kept(self, name: str, make: Callable[[], ESYS_TR]) -> Generator[ESYS_TR]:
        """A primary key that takes long to make, in the TPM while the block lasts; in between its context is kept."""
        handle = self._restored(name)
        if handle is None:
            handle = make()
        try:
            if name not in self._contexts:
                self._contexts[name] = self.esapi.context_save(handle)
            yield handle
        finally:
            with suppress(TSS2_Exception):
                self.esapi.flush_context(handle)

    def _restored(self, name: str) -> ESYS_TR | None:
        """A saved object, back in the TPM. A reset makes an end of saved contexts; what else is wrong shows next."""
        context = self._contexts.pop(name, None)
        if context is None:
            return None
        try:
            handle = self.esapi.context_load(context)
        except TSS2_Exception as error:
            if meaning(int(error.rc)) not in {Meaning.INTEGRITY, Meaning.GONE} or not is_tpm(int(error.rc)):
                raise
            return None
        self._contexts[name] = context
        return handle

    def session(self, kind: int = TPM2_SE.HMAC, hash_algorithm: int = TPM2_ALG.SHA256) -> ESYS_TR:
        """The session for the next command."""
        held = self._sessions.get(kind)
        if held is not None and held.use():
            return held.handle
        if held is not None:
            del self._sessions[kind]
            self.esapi.flush_context(held.handle)
        with self.parent() as parent:
            held = self._sessions[kind] = _Session(self.esapi, parent.handle, kind, hash_algorithm)
        held.use()
        return held.handle

    def policy_session(self, hash_algorithm: int = TPM2_ALG.SHA256) -> ESYS_TR:
        """The policy session for the next command, its policy still empty. There is one, of one hash."""
        held = self._sessions.get(TPM2_SE.POLICY)
        if held is not None and held.hash != hash_algorithm:
            self.end_policy_session()
        return self.session(TPM2_SE.POLICY, hash_algorithm)

    def end_policy_session(self) -> None:
        """After a failure its policy is neither empty nor what the key wants."""
        held = self._sessions.pop(TPM2_SE.POLICY, None)
        if held is not None:
            with suppress(TSS2_Exception):
                self.esapi.flush_context(held.handle)

    def load(self, key: LoadedKey) -> ESYS_TR:
        """The key in the TPM. Of loaded blobs the one used longest ago gives way."""
        if isinstance(key, Persistent):
            return self._at_handle(key)
        known = _known(key)
        handle = self._loaded.get(known)
        if handle is not None:
            self._loaded.move_to_end(known)
            return handle
        self.make_room(LOADED_LIMIT - 1)
        private, public = unmarshalled(key)
        with self.parent() as parent:
            handle = self.esapi.load(parent.handle, private, public, session1=self.session())
        self._loaded[known] = handle
        self.esapi.tr_set_auth(handle, key.auth)
        return handle

    def _at_handle(self, key: Persistent) -> ESYS_TR:
        handle = self._persistent.get(key.handle)
        if handle is None:
            handle = self._persistent[key.handle] = at_handle(self.esapi, key.handle)
            self.esapi.tr_set_auth(handle, key.auth)
        return handle

    def forget(self, blob: Blob) -> None:
        """Flush a loaded blob that nobody will ask for again."""
        handle = self._loaded.pop(_known(blob), None)
        if handle is not None:
            self.esapi.flush_context(handle)

    def make_room(self, keep: int) -> None:
        """Flush loaded keys until `keep` are left."""
        while len(self._loaded) > keep:
            known, handle = next(iter(self._loaded.items()))
            self.esapi.flush_context(handle)
            del self._loaded[known]

    def rest(self) -> None:
        """Leave nothing in the TPM."""
        try:
            self.make_room(0)
            for kind, held in list(self._sessions.items()):
                self.esapi.flush_context(held.handle)
                del self._sessions[kind]
            if self._left:
                self._flush_left(self.esapi)
        except TSS2_Exception:
            self.drop()

    def drop(self) -> None:
        """Forget everything, the context included: after an error of the transport it is poisoned.

        What the TPM holds is flushed, by the next context where this one cannot any more.
        """
        esapi, self._esapi = self._esapi, None
        handles = [*self._loaded.values(), *(held.handle for held in self._sessions.values())]
        self._loaded.clear()
        self._sessions.clear()
        self._persistent.clear()
        self._contexts.clear()
        if esapi is None:
            return
        for handle in handles:
            number = int(esapi.tr_get_tpm_handle(handle))
            try:
                esapi.flush_context(handle)
            except TSS2_Exception:
                self._left.append(number)
        esapi.close()

    def close(self) -> None:
        self.rest()
        self.drop()

    def _flush_left(self, esapi: ESAPI) -> None:
        """Flush what the context before this one had to leave behind, before anything else may get the same handle."""
        left, self._left = self._left, []
        for number in left:
            try:
                esapi.flush_context(esapi.tr_from_tpmpublic(number))
            except TSS2_Exception as error:
                if not is_tpm(int(error.rc)):
                    self._left.append(number)

    def _clear_away(self) -> None:
        """Flush the sessions and objects that a process before this one left loaded in a bare TPM.

        Behind a resource manager only one's own are to be seen. Before the TPM itself nobody else has any in use:
        such a TPM takes one program at a time.
        """
        for first in (LOADED_SESSION_FIRST, TRANSIENT_FIRST):
            _, found = self.esapi.get_capability(TPM2_CAP.HANDLES, first, 16)
            for handle in list(found.data.handles):
                self.esapi.flush_context(self.esapi.tr_from_tpmpublic(handle))
