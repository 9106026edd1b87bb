"""The PKCS#11 library: the only module that imports `pkcs11`. Everything here blocks; worker.py calls it.

A module is loaded once per process and shared by all key managers that name its path. python-pkcs11 would call
C_Initialize(NULL), after which SoftHSM answers threads with CKR_GENERAL_ERROR; so cryptoki.py calls it, on the same
library, and python-pkcs11 is given the initialised module.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, MechanismFlag, ObjectClass, TokenFlag, _pkcs11, exceptions
from pkcs11.mechanisms import MGF, Mechanism
from pkcs11.mechanisms import KeyType as TokenKeyType

from keystores.errors import NotFound, PermanentlyUnusable, Refused, TemporarilyUnavailable, Unsupported
from keystores.pkcs11 import encoding
from keystores.pkcs11.configuration import TokenName
from keystores.pkcs11.cryptoki import CKR_OK, Cryptoki
from keystores.pkcs11.profiles import Profile
from plugins.keymanager import Hash, KeyType, Scheme

RELOAD_PATIENCE = 5.0
"""Seconds for other threads to leave the module before it is initialised anew."""

_RSA_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_4096: 4096}
_PSS_PARAMETERS = {
    Hash.SHA256: (Mechanism.SHA256, MGF.SHA256, 32),
    Hash.SHA384: (Mechanism.SHA384, MGF.SHA384, 48),
    Hash.SHA512: (Mechanism.SHA512, MGF.SHA512, 64),
}
_WRONG_PIN = (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange)
_LACKING = (
    exceptions.MechanismInvalid,
    exceptions.MechanismParamInvalid,
    exceptions.KeySizeRange,
    exceptions.DomainParamsInvalid,
    exceptions.FunctionNotSupported,
    exceptions.AttributeValueInvalid,
)


_REFUSING = (
    exceptions.AttributeReadOnly,
    exceptions.AttributeSensitive,
    exceptions.AttributeTypeInvalid,
    exceptions.DataInvalid,
    exceptions.DataLenRange,
    exceptions.DeviceMemory,
    exceptions.FunctionRejected,
    exceptions.KeyTypeInconsistent,
    exceptions.SessionReadOnly,
    exceptions.TemplateIncomplete,
    exceptions.TemplateInconsistent,
    exceptions.TokenWriteProtected,
    exceptions.UserPinNotInitialized,
)
"""The token is there and says no; asking anew would not change it."""


class Gone(TemporarilyUnavailable):
    """The session, the token or the module no longer answers; opening it anew may help."""


class KeyGone(Gone):
    """The token answers, and the key is not there."""


class WrongPin(Refused):
    """The token refused the PIN."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A private key in the token. `public_key` (DER) is None when the token has no public key object for it."""

    cka_id: bytes
    label: str
    public_key: bytes | None


def return_value(error: exceptions.PKCS11Error) -> str:
    """The standard's name of the code behind an error, such as CKR_PIN_INCORRECT."""
    if type(error) is exceptions.PKCS11Error:
        return str(error)
    return "CKR" + re.sub(r"(?<!^)(?=[A-Z])|^", "_", type(error).__name__).upper()


@contextmanager
def _translated(doing: str) -> Generator[None]:
    try:
        yield
    except _LACKING as error:
        raise Unsupported(f"{doing}: the token cannot do it: {return_value(error)}") from error
    except _REFUSING as error:
        raise Refused(f"{doing}: the token refuses it: {return_value(error)}") from error
    except exceptions.PKCS11Error as error:
        raise Gone(f"{doing}: {return_value(error)}") from error


def _matches(name: TokenName, token: pkcs11.Token) -> bool:
    pairs = (
        (name.label, token.label),
        (name.serial, token.serial.decode("ascii", "replace")),
        (name.manufacturer, token.manufacturer_id),
        (name.model, token.model),
    )
    return all(wanted is None or wanted == actual for wanted, actual in pairs)


class Module:
    """One loaded PKCS#11 module, counted by its users. `generation` grows each time it is initialised."""

    _loaded: dict[str, Module] = {}
    _loading = threading.Lock()

    def __init__(self, path: str) -> None:
        self.path = path
        self.generation = 0
        try:
            self._cryptoki = Cryptoki(path)
            # __new__ loads the library; __init__ would initialise it, without locking.
            self.lib = _pkcs11.lib.__new__(_pkcs11.lib, path)
        except (OSError, AttributeError, exceptions.PKCS11Error) as error:
            raise NotFound(f"module_path: {path} is no PKCS#11 module that can be loaded: {error}") from error
        self._users = 0
        self._inside = 0
        self._quiet = threading.Condition()

    @classmethod
    def acquire(cls, path: str) -> Module:
        """The module at that path, initialised. Raises NotFound when there is none, Gone when it does not start."""
        if not Path(path).is_file():
            raise NotFound(f"module_path: there is no PKCS#11 module at {path}; install it or correct the path")
        with cls._loading:
            module = cls._loaded.get(path)
            if module is None:
                module = cls._loaded[path] = cls(path)
            if not module._users:
                module._initialize()
            module._users += 1
            return module

    def release(self) -> None:
        """Give it back; the last user finalises it."""
        with Module._loading:
            self._users -= 1
            if not self._users:
                self._cryptoki.finalize()

    def _initialize(self) -> None:
        code = self._cryptoki.initialize()
        if code != CKR_OK:
            raise Gone(
                f"PKCS#11 module {self.path} does not start: C_Initialize gave {code:#x}; "
                "check the module's own configuration and the device"
            )
        self.generation += 1

    def reload(self, generation: int) -> None:
        """Finalise and initialise, unless somebody did since `generation`. Raises Gone.

        C_Finalize under another thread's call is undefined (PKCS#11 2.40, 5.4), so this waits for them, not for ever.
        """
        with self._quiet:
            if self.generation != generation:
                return
            if not self._quiet.wait_for(lambda: not self._inside, RELOAD_PATIENCE):
                raise Gone(f"a call into the PKCS#11 module {self.path} hangs; it cannot be initialised anew")
            self._cryptoki.finalize()
            self._initialize()

    @contextmanager
    def entered(self, generation: int | None = None) -> Generator[int]:
        """Hold off `reload` while inside. Raises Gone when the module was initialised anew since `generation`."""
        with self._quiet:
            if generation not in (None, self.generation):
                raise Gone(f"the PKCS#11 module {self.path} was initialised anew")
            self._inside += 1
            entered = self.generation
        try:
            yield entered
        finally:
            with self._quiet:
                self._inside -= 1
                self._quiet.notify_all()

    def find(self, name: TokenName) -> pkcs11.Token:
        """The token of that name. Raises NotFound with the labels there are, Refused for two, Gone."""
        with _translated(f"PKCS#11 module {self.path}: the tokens cannot be listed"):
            tokens = [slot.get_token() for slot in self.lib.get_slots(token_present=True)]
        initialised = [token for token in tokens if TokenFlag.TOKEN_INITIALIZED in token.flags]
        matching = [token for token in initialised if _matches(name, token)]
        if not matching:
            labels = ", ".join(repr(token.label) for token in initialised) or "none"
            raise NotFound(f"PKCS#11 module {self.path} has no token with {name.text}; the tokens there are: {labels}")
        if len(matching) > 1:
            raise Refused(f"{len(matching)} tokens have {name.text}; name one by token_serial")
        return matching[0]


class TokenSession:
    """A logged-in session, confined to one thread, with the handles of the keys it has used."""

    def __init__(self, module: Module, generation: int, token: pkcs11.Token, session: pkcs11.Session) -> None:
        self._module = module
        self._token = token
        self._session = session
        self._handles: dict[bytes, pkcs11.PrivateKey] = {}
        self.generation = generation

    @classmethod
    def open(cls, module: Module, name: TokenName, pin: str) -> TokenSession:
        """Raises WrongPin, and what `Module.find` raises. The PIN is tried exactly once."""
        with module.entered() as generation:
            token = module.find(name)
            if TokenFlag.USER_PIN_LOCKED in token.flags:
                raise WrongPin(f"the user PIN of the token with {name.text} is locked; unlock it with the SO PIN")
            with _translated(f"the token with {name.text} does not open a session"):
                try:
                    session = token.open(rw=True, user_pin=pin)
                except exceptions.UserAlreadyLoggedIn:
                    # Login is per process and token (PKCS#11 2.40, 5.6): another key manager was here first.
                    session = token.open(rw=True)
                except _WRONG_PIN as error:
                    raise WrongPin(f"the token with {name.text} refused the PIN: {return_value(error)}") from error
                except (exceptions.PinLocked, exceptions.PinExpired) as error:
                    raise WrongPin(
                        f"the PIN of the token with {name.text} cannot be used: {return_value(error)}"
                    ) from error
            return cls(module, generation, token, session)

    @property
    def serial(self) -> str:
        return self._token.serial.decode("ascii", "replace")

    @contextmanager
    def _calling(self, doing: str) -> Generator[None]:
        with self._module.entered(self.generation), _translated(doing):
            yield

    def abandon(self) -> None:
        """Close the session, if it can still be closed."""
        with suppress(Gone), self._calling("closing the session"):
            self._session.close()

    def check(self) -> None:
        """Ask the token anything. Raises Gone for a session that died."""
        with self._calling("asking the token"):
            list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: b"nobody's"}))

    def keys(self, label_prefix: str) -> list[TokenKey]:
        """The private keys whose CKA_LABEL begins with the prefix."""
        with self._calling("listing the token's keys"):
            found: list[TokenKey] = []
            for key in list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})):
                label = key[Attribute.LABEL]
                if label.startswith(label_prefix):
                    cka_id = key[Attribute.ID]
                    found.append(TokenKey(cka_id, label, self._public_key(cka_id)))
            return found

    def _public_key(self, cka_id: bytes) -> bytes | None:
        public = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: cka_id}))
        if len(public) != 1:
            return None
        if public[0][Attribute.KEY_TYPE] is TokenKeyType.RSA:
            return encoding.rsa_public_key(public[0][Attribute.MODULUS], public[0][Attribute.PUBLIC_EXPONENT])
        for key_type, parameters in encoding.EC_PARAMETERS.items():
            if public[0][Attribute.EC_PARAMS] == parameters:
                return encoding.ec_public_key(public[0][Attribute.EC_POINT], key_type)
        return None

    def generate(self, cka_id: bytes, label: str, key_type: KeyType, profile: Profile) -> bytes:
        """Make a key pair in the token and return its public key (DER).

        Raises Unsupported for a key type that the token lacks, Refused when the key is not what was asked for: it is
        destroyed then.
        """
        private_template: dict[Attribute, object] = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True}
        if profile.states_extractable:
            private_template[Attribute.EXTRACTABLE] = False
        if profile.states_sign_recover:
            private_template[Attribute.SIGN_RECOVER] = False
        capabilities = MechanismFlag.SIGN | MechanismFlag.VERIFY
        with self._calling(f"generating a key of type {key_type.value}"):
            try:
                if key_type in _RSA_BITS:
                    public, private = self._session.generate_keypair(
                        TokenKeyType.RSA,
                        _RSA_BITS[key_type],
                        id=cka_id,
                        label=label,
                        store=True,
                        capabilities=capabilities,
                        private_template=private_template,
                    )
                else:
                    parameters = {Attribute.EC_PARAMS: encoding.EC_PARAMETERS[key_type]}
                    public, private = self._session.create_domain_parameters(
                        TokenKeyType.EC, parameters, local=True
                    ).generate_keypair(
                        id=cka_id,
                        label=label,
                        store=True,
                        capabilities=capabilities,
                        private_template=private_template,
                    )
            except _LACKING as error:
                raise Unsupported(f"the token makes no keys of type {key_type.value}: {return_value(error)}") from error
            try:
                _check_attributes(private)
            except Refused:
                private.destroy()
                public.destroy()
                raise
            if key_type in _RSA_BITS:
                return encoding.rsa_public_key(public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT])
            return encoding.ec_public_key(public[Attribute.EC_POINT], key_type)

    def sign(self, cka_id: bytes, key_type: KeyType, digests: Sequence[bytes], scheme: Scheme) -> Iterator[bytes]:
        """The raw signatures, one by one: r‖s for EC keys. Raises Gone, and PermanentlyUnusable for two keys."""
        mechanism, parameter = Mechanism.ECDSA, None
        payloads: Sequence[bytes]
        if key_type in encoding.COORDINATE_SIZE:
            payloads = [encoding.ecdsa_input(digest, key_type) for digest in digests]
        elif scheme.pss:
            mechanism, parameter, payloads = Mechanism.RSA_PKCS_PSS, _PSS_PARAMETERS[scheme.hash], digests
        else:
            mechanism = Mechanism.RSA_PKCS
            payloads = [encoding.digest_info(digest, scheme.hash) for digest in digests]
        with self._calling("signing"):
            key = self._private_key(cka_id)
            for payload in payloads:
                yield key.sign(payload, mechanism=mechanism, mechanism_param=parameter)

    def _private_key(self, cka_id: bytes) -> pkcs11.PrivateKey:
        key = self._handles.get(cka_id)
        if key is None:
            template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: cka_id}
            found = list(self._session.get_objects(template))
            if not found:
                raise KeyGone(f"the token no longer has the key with CKA_ID {cka_id.hex()}")
            if len(found) > 1:
                raise PermanentlyUnusable(f"the token has {len(found)} private keys with CKA_ID {cka_id.hex()}")
            key = self._handles[cka_id] = found[0]
        return key

    def relabel(self, cka_id: bytes, label: str) -> None:
        """Change the CKA_LABEL of both halves. Raises Gone for a token that refuses it."""
        with self._calling("labelling a key"):
            for entry in list(self._session.get_objects({Attribute.ID: cka_id})):
                entry[Attribute.LABEL] = label

    def destroy(self, cka_id: bytes) -> None:
        """Destroy both halves; a key that is gone already is no error."""
        with self._calling("destroying a key"):
            self._handles.pop(cka_id, None)
            for entry in list(self._session.get_objects({Attribute.ID: cka_id})):
                entry.destroy()


DEMANDED = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}


def _check_attributes(private: pkcs11.PrivateKey) -> None:
    """Raises Refused for a new key that is not sign-only, sensitive, local and never extractable."""
    wrong = [
        f"CKA_{attribute.name} is {str(not demanded).lower()}"
        for attribute, demanded in DEMANDED.items()
        if bool(private[attribute]) is not demanded
    ]
    if wrong:
        raise Refused(f"the token made a key that is not as safe as it must be ({', '.join(wrong)}); it was destroyed")
