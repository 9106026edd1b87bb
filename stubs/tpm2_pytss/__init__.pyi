from collections.abc import Iterator
from typing import Self

class TSS2_Exception(RuntimeError):
    @property
    def rc(self) -> int: ...

class ESYS_TR(int):
    NONE: ESYS_TR
    PASSWORD: ESYS_TR
    OWNER: ESYS_TR
    ENDORSEMENT: ESYS_TR

class TPM2_ALG:
    RSA: int
    ECC: int
    KEYEDHASH: int
    NULL: int
    SHA1: int
    SHA256: int
    SHA384: int
    SHA512: int
    ECDSA: int
    RSASSA: int
    RSAPSS: int

class TPM2_ECC:
    NIST_P256: int
    NIST_P384: int

class TPM2_RH:
    OWNER: int
    NULL: int

class TPM2_SE:
    HMAC: int
    POLICY: int
    TRIAL: int

class TPM2_ST:
    HASHCHECK: int

class TPM2_SU:
    CLEAR: int

class TPM2_CAP:
    HANDLES: int
    TPM_PROPERTIES: int

class TPM2_PT:
    MANUFACTURER: int

class TPM2_PT_NV:
    BUFFER_MAX: int

class TPM2_PT_FIRMWARE:
    VERSION_1: int

class TPMA_OBJECT(int):
    FIXEDTPM: int
    FIXEDPARENT: int
    SENSITIVEDATAORIGIN: int
    USERWITHAUTH: int
    ADMINWITHPOLICY: int
    NODA: int
    RESTRICTED: int
    DECRYPT: int
    SIGN_ENCRYPT: int

class TPMA_NV(int):
    WRITTEN: int
    AUTHREAD: int
    OWNERREAD: int

class TPMA_SESSION(int):
    CONTINUESESSION: int
    DECRYPT: int
    ENCRYPT: int

class _Marshalled:
    def marshal(self) -> bytes: ...
    @classmethod
    def unmarshal(cls, data: bytes) -> tuple[Self, int]: ...

class _Sized(_Marshalled):
    def __bytes__(self) -> bytes: ...

class TPM2B_PRIVATE(_Sized): ...
class TPM2B_NAME(_Sized): ...

class TPM2B_DIGEST(_Sized):
    def __init__(self, buffer: bytes = ...) -> None: ...

class TPM2B_SENSITIVE_DATA(_Sized): ...
class TPM2B_ATTEST(_Sized): ...
class TPM2B_MAX_NV_BUFFER(_Sized): ...
class TPM2B_ID_OBJECT(_Marshalled): ...
class TPM2B_ENCRYPTED_SECRET(_Marshalled): ...
class TPMS_CONTEXT(_Marshalled): ...

class TPMT_SYM_DEF_OBJECT:
    def __init__(self, *, algorithm: int) -> None: ...
    @classmethod
    def parse(cls, alg: str) -> TPMT_SYM_DEF_OBJECT: ...

class _Details:
    hashAlg: int

class _SchemeDetails:
    any: _Details
    rsassa: _Details
    ecdsa: _Details

class _Scheme:
    details: _SchemeDetails
    def __init__(self, *, scheme: int) -> None: ...

class TPMT_RSA_SCHEME(_Scheme): ...
class TPMT_ECC_SCHEME(_Scheme): ...
class TPMT_KDF_SCHEME(_Scheme): ...
class TPMT_KEYEDHASH_SCHEME(_Scheme): ...
class TPMT_SIG_SCHEME(_Scheme): ...

class TPMS_RSA_PARMS:
    def __init__(self, *, symmetric: TPMT_SYM_DEF_OBJECT, scheme: TPMT_RSA_SCHEME, keyBits: int) -> None: ...

class TPMS_ECC_PARMS:
    def __init__(
        self, *, symmetric: TPMT_SYM_DEF_OBJECT, scheme: TPMT_ECC_SCHEME, curveID: int, kdf: TPMT_KDF_SCHEME
    ) -> None: ...

class TPMS_KEYEDHASH_PARMS:
    def __init__(self, *, scheme: TPMT_KEYEDHASH_SCHEME) -> None: ...

class TPMU_PUBLIC_PARMS:
    def __init__(
        self,
        *,
        rsaDetail: TPMS_RSA_PARMS = ...,
        eccDetail: TPMS_ECC_PARMS = ...,
        keyedHashDetail: TPMS_KEYEDHASH_PARMS = ...,
    ) -> None: ...

class TPMS_ECC_POINT:
    def __init__(self, *, x: bytes, y: bytes) -> None: ...

class TPMU_PUBLIC_ID:
    def __init__(self, *, rsa: bytes = ..., ecc: TPMS_ECC_POINT = ...) -> None: ...

class TPMT_PUBLIC(_Marshalled):
    type: int
    nameAlg: int
    objectAttributes: int
    authPolicy: TPM2B_DIGEST
    unique: TPMU_PUBLIC_ID
    def __init__(
        self,
        *,
        type: int,
        nameAlg: int,
        objectAttributes: int,
        authPolicy: bytes,
        parameters: TPMU_PUBLIC_PARMS,
        unique: TPMU_PUBLIC_ID = ...,
    ) -> None: ...

class TPM2B_PUBLIC(_Marshalled):
    publicArea: TPMT_PUBLIC
    def __init__(self, publicArea: TPMT_PUBLIC) -> None: ...

class TPMS_SENSITIVE_CREATE:
    def __init__(self, *, data: bytes = ..., userAuth: bytes = ...) -> None: ...

class TPM2B_SENSITIVE_CREATE:
    def __init__(self, sensitive: TPMS_SENSITIVE_CREATE = ...) -> None: ...

class TPML_DIGEST:
    def __init__(self, digests: list[TPM2B_DIGEST]) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[TPM2B_DIGEST]: ...

class TPML_PCR_SELECTION:
    def __init__(self) -> None: ...
    @classmethod
    def parse(cls, selections: str) -> TPML_PCR_SELECTION: ...

class _QuoteInfo:
    pcrDigest: TPM2B_DIGEST

class _Attested:
    quote: _QuoteInfo

class TPMS_ATTEST(_Marshalled):
    attested: _Attested

class TPMT_TK_HASHCHECK:
    def __init__(self, *, tag: int, hierarchy: int) -> None: ...

class _EccSignature:
    signatureR: _Sized
    signatureS: _Sized

class _RsaSignature:
    sig: _Sized

class _Signature:
    ecdsa: _EccSignature
    rsassa: _RsaSignature
    rsapss: _RsaSignature

class TPMT_SIGNATURE(_Marshalled):
    sigAlg: int
    signature: _Signature

class _Property:
    property: int
    value: int

class _Capabilities:
    handles: list[int]
    tpmProperties: list[_Property]

class _NvPublic:
    attributes: int
    dataSize: int

class TPM2B_NV_PUBLIC:
    nvPublic: _NvPublic

class TPMS_CAPABILITY_DATA:
    data: _Capabilities

class PyTCTI:
    def __init__(self) -> None: ...
    def do_transmit(self, command: bytes) -> None: ...
    def do_receive(self, timeout: int) -> bytes: ...

class ESAPI:
    def __init__(self, tcti: str | PyTCTI) -> None: ...
    def close(self) -> None: ...
    def startup(self, startup_type: int) -> None: ...
    def tr_from_tpmpublic(self, handle: int) -> ESYS_TR: ...
    def tr_get_tpm_handle(self, esys_handle: ESYS_TR) -> int: ...
    def tr_get_name(self, handle: ESYS_TR) -> TPM2B_NAME: ...
    def tr_set_auth(self, esys_handle: ESYS_TR, auth_value: bytes) -> None: ...
    def tr_close(self, esys_handle: ESYS_TR) -> None: ...
    def trsess_set_attributes(self, session: ESYS_TR, attributes: int) -> None: ...
    def start_auth_session(
        self, tpm_key: ESYS_TR, bind: ESYS_TR, session_type: int, symmetric: str | None, auth_hash: int
    ) -> ESYS_TR: ...
    def create(
        self,
        parent_handle: ESYS_TR,
        in_sensitive: TPM2B_SENSITIVE_CREATE,
        in_public: TPM2B_PUBLIC,
        *,
        session1: ESYS_TR,
    ) -> tuple[TPM2B_PRIVATE, TPM2B_PUBLIC, object, object, object]: ...
    def create_primary(
        self,
        in_sensitive: TPM2B_SENSITIVE_CREATE,
        in_public: TPM2B_PUBLIC,
        primary_handle: ESYS_TR,
        *,
        session1: ESYS_TR,
    ) -> tuple[ESYS_TR, TPM2B_PUBLIC, object, object, object]: ...
    def load(
        self, parent_handle: ESYS_TR, in_private: TPM2B_PRIVATE, in_public: TPM2B_PUBLIC, *, session1: ESYS_TR
    ) -> ESYS_TR: ...
    def read_public(
        self, object_handle: ESYS_TR, *, session1: ESYS_TR = ...
    ) -> tuple[TPM2B_PUBLIC, TPM2B_NAME, TPM2B_NAME]: ...
    def sign(
        self,
        key_handle: ESYS_TR,
        digest: bytes,
        in_scheme: TPMT_SIG_SCHEME,
        validation: TPMT_TK_HASHCHECK,
        *,
        session1: ESYS_TR,
    ) -> TPMT_SIGNATURE: ...
    def certify(
        self,
        object_handle: ESYS_TR,
        sign_handle: ESYS_TR,
        qualifying_data: bytes,
        in_scheme: TPMT_SIG_SCHEME,
        *,
        session1: ESYS_TR,
        session2: ESYS_TR,
    ) -> tuple[TPM2B_ATTEST, TPMT_SIGNATURE]: ...
    def hash(self, data: bytes, hash_alg: int, hierarchy: ESYS_TR) -> tuple[TPM2B_DIGEST, TPMT_TK_HASHCHECK]: ...
    def unseal(self, item_handle: ESYS_TR, *, session1: ESYS_TR) -> TPM2B_SENSITIVE_DATA: ...
    def get_random(self, bytes_requested: int, *, session1: ESYS_TR) -> TPM2B_DIGEST: ...
    def policy_pcr(self, policy_session: ESYS_TR, pcr_digest: bytes, pcrs: TPML_PCR_SELECTION) -> None: ...
    def policy_get_digest(self, policy_session: ESYS_TR) -> TPM2B_DIGEST: ...
    def context_save(self, save_handle: ESYS_TR) -> TPMS_CONTEXT: ...
    def context_load(self, context: TPMS_CONTEXT) -> ESYS_TR: ...
    def flush_context(self, flush_handle: ESYS_TR) -> None: ...
    def get_capability(self, capability: int, prop: int, property_count: int) -> tuple[bool, TPMS_CAPABILITY_DATA]: ...
    def policy_secret(
        self,
        auth_handle: ESYS_TR,
        policy_session: ESYS_TR,
        nonce_tpm: bytes,
        cp_hash_a: bytes,
        policy_ref: bytes,
        expiration: int,
        *,
        session1: ESYS_TR,
    ) -> tuple[object, object]: ...
    def policy_or(self, policy_session: ESYS_TR, p_hash_list: TPML_DIGEST) -> None: ...
    def activate_credential(
        self,
        activate_handle: ESYS_TR,
        key_handle: ESYS_TR,
        credential_blob: TPM2B_ID_OBJECT,
        secret: TPM2B_ENCRYPTED_SECRET,
        *,
        session1: ESYS_TR,
        session2: ESYS_TR,
    ) -> TPM2B_DIGEST: ...
    def quote(
        self,
        sign_handle: ESYS_TR,
        pcr_select: TPML_PCR_SELECTION,
        qualifying_data: bytes,
        in_scheme: TPMT_SIG_SCHEME,
        *,
        session1: ESYS_TR,
    ) -> tuple[TPM2B_ATTEST, TPMT_SIGNATURE]: ...
    def pcr_read(self, pcr_selection_in: TPML_PCR_SELECTION) -> tuple[int, TPML_PCR_SELECTION, TPML_DIGEST]: ...
    def nv_read_public(self, nv_index: ESYS_TR) -> tuple[TPM2B_NV_PUBLIC, TPM2B_NAME]: ...
    def nv_read(
        self, nv_index: ESYS_TR, size: int, offset: int, *, auth_handle: ESYS_TR, session1: ESYS_TR = ...
    ) -> TPM2B_MAX_NV_BUFFER: ...
