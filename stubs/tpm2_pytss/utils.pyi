from typing import Protocol

from tpm2_pytss import TPM2B_PUBLIC

class _Marshalled(Protocol):
    def marshal(self) -> bytes: ...

def make_credential(public: TPM2B_PUBLIC, credential: bytes, name: bytes) -> tuple[_Marshalled, _Marshalled]: ...
