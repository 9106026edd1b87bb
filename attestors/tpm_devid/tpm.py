"""A DevID's work in the TPM. It blocks, and leaves nothing there: no object, no session.

A bare TPM has room for three objects: the storage key, the DevID's and the attestation key are there at once, and the
endorsement key when the latter two have gone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_SESSION,
    TPMS_CONTEXT,
    TPMS_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    PyTCTI,
    TSS2_Exception,
)

from attestors.tpm_devid import blobs, devices, objects
from attestors.tpm_devid.jobs import Access, Begin, Begun, Respond, Responded
from keystores.tpm.failures import Fault, failure
from keystores.tpm.responses import HANDLE, error_number, is_tpm
from operations.errors import InvalidArgument

EK_CERTIFICATE: Final = 0x01C00002
"""Of the RSA-2048 endorsement key (TCG EK Credential Profile 2.5, 2.2.1.4)."""
_NV_CHUNK: Final = 512
_NV_LIMIT: Final = 16 << 10
_LARGEST_HASHED: Final = 1024
"""Bytes that every TPM hashes at once (TPM2B_MAX_BUFFER)."""
_TALKING: Final = 60.0
"""Seconds for one answer at a Unix socket."""
_ENCRYPTED: Final = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT


class _Socket(PyTCTI):
    """A TPM at a Unix socket, a connection for each command: it serves one at a time, and others wait for theirs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._answer = b""

    def do_transmit(self, command: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TALKING)
            connection.connect(self._path)
            connection.sendall(command)
            head = _exactly(connection, 10)
            self._answer = head + _exactly(connection, int.from_bytes(head[2:6]) - len(head))

    def do_receive(self, timeout: int) -> bytes:
        return self._answer


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) != size:
        raise ConnectionResetError("the TPM's answer is cut short")
    return data


@contextmanager
def _stage(what: str, tcti: str) -> Generator[None]:
    """Say what was being done when something failed. Raises Fault."""
    try:
        yield
    except TSS2_Exception as error:
        found = failure(error, tcti).failed
        raise Fault(found.kind, f"{what}: {found.message} ({error})", code=found.code) from error
    except OSError as error:
        raise Fault("TemporarilyUnavailable", f"{what}: no TPM answers at {tcti}: {error}") from error
    except InvalidArgument as error:
        raise Fault("InvalidArgument", f"{what}: {error}") from error
    except Fault as error:
        raise Fault(error.failed.kind, f"{what}: {error.failed.message}", code=error.failed.code) from error


class Tpm:
    """A connection, and what it has in the TPM: given back at its end, last thing first."""

    def __init__(self, access: Access, held: ExitStack) -> None:
        path = access.tcti.removeprefix(devices.SOCKET)
        self.esapi: Final = ESAPI(access.tcti if path == access.tcti else _Socket(path))
        self._held: Final = held
        self._access: Final = access
        held.callback(self.esapi.close)

    @classmethod
    @contextmanager
    def opened(cls, access: Access, what: str) -> Generator[Tpm]:
        """`what` it is opened for begins the Fault that this may raise."""
        with ExitStack() as held:
            with _stage(f"{what}: cannot open TPM", access.tcti):
                tpm = cls(access, held)
            yield tpm

    def keep(self, handle: ESYS_TR) -> ExitStack:
        """Hold an object or a session; it is flushed when the result is closed, or at the end."""
        with ExitStack() as one:
            one.callback(self._flush, handle)
            return self._held.enter_context(one.pop_all())

    def _flush(self, handle: ESYS_TR) -> None:
        # Whatever keeps it there, a lost connection say, was told already.
        with suppress(TSS2_Exception, OSError):
            self.esapi.flush_context(handle)

    def session(self, key: ESYS_TR = ESYS_TR.NONE) -> ESYS_TR:
        """An HMAC session, salted by a decryption key where there is one; then it encrypts first parameters."""
        made = self.esapi.start_auth_session(key, ESYS_TR.NONE, TPM2_SE.HMAC, "aes128cfb", TPM2_ALG.SHA256)
        self.keep(made)
        self.esapi.trsess_set_attributes(made, TPMA_SESSION.CONTINUESESSION if key is ESYS_TR.NONE else _ENCRYPTED)
        return made

    def storage_key(self, kind: str) -> tuple[ESYS_TR, ESYS_TR]:
        """The parent of DevID keys of this kind, and a session salted by it."""
        self.esapi.tr_set_auth(ESYS_TR.OWNER, self._access.owner_auth)
        session = self.session() if self._access.owner_auth else ESYS_TR.PASSWORD
        handle, *_ = self.esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), objects.storage_key(kind), ESYS_TR.OWNER, session1=session
        )
        self.keep(handle)
        return handle, self.session(handle)

    def create(self, parent: ESYS_TR, template: TPM2B_PUBLIC, auth: bytes, session: ESYS_TR) -> tuple[bytes, bytes]:
        """A new key: TPMT_PUBLIC and the buffer of a TPM2B_PRIVATE."""
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=auth))
        private, public, *_ = self.esapi.create(parent, sensitive, template, session1=session)
        return blobs.unsized(public.marshal()), bytes(private)

    def load(
        self, parent: ESYS_TR, public: bytes, private: bytes, auth: bytes, session: ESYS_TR
    ) -> tuple[ESYS_TR, ExitStack]:
        area, _ = TPM2B_PUBLIC.unmarshal(blobs.sized(public))
        sensitive, _ = TPM2B_PRIVATE.unmarshal(blobs.sized(private))
        handle = self.esapi.load(parent, sensitive, area, session1=session)
        held = self.keep(handle)
        self.esapi.tr_set_auth(handle, auth)
        return handle, held

    def saved(self, handle: ESYS_TR) -> bytes:
        return self.esapi.context_save(handle).marshal()

    def restore(self, context: bytes, auth: bytes = b"") -> tuple[ESYS_TR, ExitStack]:
        found, _ = TPMS_CONTEXT.unmarshal(context)
        handle = self.esapi.context_load(found)
        held = self.keep(handle)
        self.esapi.tr_set_auth(handle, auth)
        return handle, held

    def endorsement_key(self, session: ESYS_TR) -> tuple[ESYS_TR, bytes]:
        """The RSA-2048 one, made from its template, and its TPMT_PUBLIC."""
        self.esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, self._access.endorsement_auth)
        handle, public, *_ = self.esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), objects.endorsement_key(), ESYS_TR.ENDORSEMENT, session1=session
        )
        self.keep(handle)
        return handle, blobs.unsized(public.marshal())

    def endorsement_certificate(self) -> bytes:
        """DER. Raises Fault where the TPM has none."""
        try:
            index = self.esapi.tr_from_tpmpublic(EK_CERTIFICATE)
        except TSS2_Exception as error:
            if not is_tpm(int(error.rc)) or error_number(int(error.rc)) != HANDLE:
                raise
            raise Fault(
                "Unsupported",
                f"failed to read NV index {EK_CERTIFICATE:08x}: the TPM has no certificate of its RSA endorsement key, "
                'which tpm_devid needs; NodeAttestor "tpm" knows other ways',
            ) from error
        public, _ = self.esapi.nv_read_public(index)
        size = min(int(public.nvPublic.dataSize), _NV_LIMIT)
        content = b""
        while len(content) < size:
            chunk = min(_NV_CHUNK, size - len(content))
            content += bytes(self.esapi.nv_read(index, chunk, len(content), auth_handle=index))
        return objects.first_element(content)

    def certify(self, key: ESYS_TR, ak: ESYS_TR, session: ESYS_TR) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE. Nothing is mixed in: the credential says that this is now."""
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        statement, signature = self.esapi.certify(key, ak, b"", scheme, session1=session, session2=ESYS_TR.PASSWORD)
        return bytes(statement), signature.marshal()

    def sign(self, key: ESYS_TR, data: bytes, hash_name: str, session: ESYS_TR) -> bytes:
        """By the key's own scheme. The TPM hashes by itself, since restricted keys sign nothing else."""
        if len(data) > _LARGEST_HASHED:
            raise Fault("InvalidArgument", f"the TPM hashes {_LARGEST_HASHED} bytes at once, not {len(data)}")
        digest, ticket = self.esapi.hash(data, objects.HASHES[hash_name], ESYS_TR.OWNER)
        made = self.esapi.sign(key, bytes(digest), TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), ticket, session1=session)
        return objects.signature(made)

    def activate(self, ak: ESYS_TR, ek: ESYS_TR, credential: bytes, secret: bytes, session: ESYS_TR) -> bytes:
        """What the credential hides. The endorsement key's policy is TPM2_PolicySecret of its hierarchy."""
        esapi = self.esapi
        id_object, _ = TPM2B_ID_OBJECT.unmarshal(blobs.sized(credential))
        seed, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(blobs.sized(secret))
        policy = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
        self.keep(policy)
        esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, self._access.endorsement_auth)
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, policy, b"", b"", b"", 0, session1=session)
        esapi.trsess_set_attributes(policy, TPMA_SESSION.CONTINUESESSION)
        return bytes(esapi.activate_credential(ak, ek, id_object, seed, session1=session, session2=policy))


_START: Final = "unable to start a new TPM session"
_POSSESSION: Final = "unable to solve proof of possession challenge"
_RESIDENCY: Final = "unable to solve proof of residency challenge"


def begin(request: Begin) -> Begun:
    """Load the DevID's key, have an attestation key certify it, and read which TPM this is. Raises Fault."""
    access, tcti = request.access, request.access.tcti
    with Tpm.opened(access, _START) as tpm:
        with _stage(f"{_START}: cannot load DevID key on TPM", tcti):
            area, _ = blobs.signing_key(request.public)
            parent, session = tpm.storage_key(blobs.kind_of(area))
            devid, devid_held = tpm.load(parent, request.public, request.private, access.devid_auth, session)
            devid_context = tpm.saved(devid)
        with _stage(f"{_START}: cannot create attestation key", tcti):
            ak_public, ak_private = tpm.create(parent, objects.attestation_key(), b"", session)
            ak, ak_held = tpm.load(parent, ak_public, ak_private, b"", session)
            ak_context = tpm.saved(ak)
        with _stage("unable to certify DevID key", tcti):
            statement, signature = tpm.certify(devid, ak, session)
        devid_held.close()
        ak_held.close()
        with _stage(f"{_START}: cannot create endorsement key", tcti):
            ek, ek_public = tpm.endorsement_key(session)
            ek_context = tpm.saved(ek)
        with _stage("unable to get endorsement certificate", tcti):
            ek_certificate = tpm.endorsement_certificate()
    return Begun(
        ek_certificate=ek_certificate,
        ek_public=ek_public,
        ak_public=ak_public,
        statement=statement,
        signature=signature,
        devid=devid_context,
        ak=ak_context,
        ek=ek_context,
    )


def respond(request: Respond) -> Responded:
    """Sign the nonce by the DevID's key, and open the credential. Raises Fault."""
    access, tcti, begun = request.access, request.access.tcti, request.begun
    with Tpm.opened(access, _POSSESSION) as tpm:
        with _stage(f"{_POSSESSION}: failed to sign nonce", tcti):
            ek, _ = tpm.restore(begun.ek)
            session = tpm.session(ek)
            devid, devid_held = tpm.restore(begun.devid, access.devid_auth)
            signature = tpm.sign(devid, request.nonce, request.hash, session)
        devid_held.close()
        with _stage(f"{_RESIDENCY}: failed to activate credential", tcti):
            ak, _ = tpm.restore(begun.ak)
            secret = tpm.activate(ak, ek, request.credential, request.secret, session)
    return Responded(signature=signature, secret=secret)


@dataclass(frozen=True, slots=True)
class Made:
    """TPMT_PUBLIC, the buffer of a TPM2B_PRIVATE, and a signature as of `Tpm.sign`."""

    public: bytes
    private: bytes
    signature: bytes


def make(access: Access, kind: str, message: Callable[[bytes], bytes], key: tuple[bytes, bytes] | None = None) -> Made:
    """Make a DevID's key, and sign with it what `message` says of its public area. Raises Fault.

    `key`, public and private, is one that is there already. Without an authorization there is nothing to guess.
    """
    with Tpm.opened(access, "cannot make a DevID") as tpm:
        with _stage("cannot make the storage key", access.tcti):
            parent, session = tpm.storage_key(kind)
        with _stage("cannot create DevID key", access.tcti):
            template = objects.devid_key(kind, guessable=bool(access.devid_auth))
            public, private = key or tpm.create(parent, template, access.devid_auth, session)
        with _stage("cannot load DevID key on TPM", access.tcti):
            handle, _ = tpm.load(parent, public, private, access.devid_auth, session)
        with _stage("cannot sign the request", access.tcti):
            _, hash_name = blobs.signing_key(public)
            signature = tpm.sign(handle, message(public), hash_name, session)
        return Made(public, private, signature)
