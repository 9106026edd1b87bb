"""The part of python-pkcs11 0.10 that keystores/pkcs11/module.py uses, with the types it really has."""

from pkcs11 import exceptions as exceptions
from pkcs11.constants import Attribute as Attribute
from pkcs11.constants import MechanismFlag as MechanismFlag
from pkcs11.constants import ObjectClass as ObjectClass
from pkcs11.constants import TokenFlag as TokenFlag
from pkcs11.mechanisms import KeyType as KeyType
from pkcs11.mechanisms import Mechanism as Mechanism
from pkcs11.types import LocalDomainParameters as LocalDomainParameters
from pkcs11.types import Object as Object
from pkcs11.types import PrivateKey as PrivateKey
from pkcs11.types import PublicKey as PublicKey
from pkcs11.types import SecretKey as SecretKey
from pkcs11.types import Session as Session
from pkcs11.types import Slot as Slot
from pkcs11.types import Token as Token
