from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, overload

from pkcs11.constants import Attribute, MechanismFlag, TokenFlag
from pkcs11.mechanisms import MGF, KeyType, Mechanism

BytesAttribute: TypeAlias = Literal[
    Attribute.ID, Attribute.EC_PARAMS, Attribute.EC_POINT, Attribute.MODULUS, Attribute.PUBLIC_EXPONENT
]

class Slot:
    slot_id: int
    def get_token(self) -> Token: ...

class Token:
    slot: Slot
    label: str
    serial: bytes
    manufacturer_id: str
    model: str
    @property
    def flags(self) -> TokenFlag: ...
    def open(self, rw: bool = ..., user_pin: str | None = ...) -> Session: ...

class Object:
    @overload
    def __getitem__(self, key: Literal[Attribute.LABEL]) -> str: ...
    @overload
    def __getitem__(self, key: Literal[Attribute.KEY_TYPE]) -> KeyType: ...
    @overload
    def __getitem__(self, key: BytesAttribute) -> bytes: ...
    @overload
    def __getitem__(self, key: Attribute) -> object: ...
    def __setitem__(self, key: Attribute, value: object) -> None: ...
    def destroy(self) -> None: ...

class PublicKey(Object): ...

class PrivateKey(Object):
    def sign(
        self,
        data: bytes,
        *,
        mechanism: Mechanism,
        mechanism_param: tuple[Mechanism, MGF, int] | None = ...,
    ) -> bytes: ...

class SecretKey(Object):
    def sign(self, data: bytes, *, mechanism: Mechanism) -> bytes: ...

class LocalDomainParameters:
    def generate_keypair(
        self,
        *,
        id: bytes,
        label: str,
        store: bool,
        capabilities: MechanismFlag,
        public_template: Mapping[Attribute, object],
        private_template: Mapping[Attribute, object],
    ) -> tuple[PublicKey, PrivateKey]: ...

class Session:
    handle: int
    def close(self) -> None: ...
    def get_objects(self, attrs: Mapping[Attribute, Any]) -> Iterator[Any]: ...
    def create_domain_parameters(
        self, key_type: KeyType, attrs: Mapping[Attribute, object], *, local: Literal[True]
    ) -> LocalDomainParameters: ...
    def generate_keypair(
        self,
        key_type: KeyType,
        key_length: int,
        *,
        id: bytes,
        label: str,
        store: bool,
        capabilities: MechanismFlag,
        public_template: Mapping[Attribute, object],
        private_template: Mapping[Attribute, object],
    ) -> tuple[PublicKey, PrivateKey]: ...
    def generate_key(
        self,
        key_type: KeyType,
        key_length: int,
        *,
        id: bytes,
        label: str,
        store: bool,
        capabilities: MechanismFlag,
        mechanism: Mechanism,
        template: Mapping[Attribute, object],
    ) -> SecretKey: ...
