"""A session with a token, logged in, confined to one thread of a worker: keys found, made, used and destroyed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import pkcs11
from pkcs11 import Attribute, MechanismFlag, ObjectClass, TokenFlag, exceptions
from pkcs11 import mechanisms as library

from keystores.errors import PermanentlyUnusable, Refused, Unsupported
from keystores.pkcs11 import description, sealing
from keystores.pkcs11.cryptoki import CKR_OK, CKR_USER_ALREADY_LOGGED_IN, CKR_USER_PIN_NOT_INITIALIZED
from keystores.pkcs11.failures import Busy, Gone, KeyGone, WrongPin
from keystores.pkcs11.module import LACKING, Module, return_value, serial, translated
from keystores.pkcs11.profiles import Profile, ProfileName, profile, recognised
from keystores.pkcs11.protocol import (
    DescribedKey,
    FoundKey,
    Generate,
    Mechanism,
    PublicParts,
    Seal,
    Sealed,
    Sign,
    TokenFacts,
    TokenName,
)
from keystores.pkcs11.templates import check_attributes, check_id, lesser, templates

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds before a throttled signature is tried again."""

_WRONG_PIN = {
    0xA0: "CKR_PIN_INCORRECT",
    0xA1: "CKR_PIN_INVALID",
    0xA2: "CKR_PIN_LEN_RANGE",
    0xA3: "CKR_PIN_EXPIRED",
    0xA4: "CKR_PIN_LOCKED",
}
_TEMPLATE_REFUSED = (
    exceptions.AttributeReadOnly,
    exceptions.AttributeTypeInvalid,
    exceptions.AttributeValueInvalid,
    exceptions.TemplateInconsistent,
)
_MECHANISMS: Mapping[Mechanism, tuple[library.Mechanism, tuple[library.Mechanism, library.MGF, int] | None]] = {
    Mechanism.ECDSA: (library.Mechanism.ECDSA, None),
    Mechanism.EDDSA: (library.Mechanism.EDDSA, None),
    Mechanism.PKCS1: (library.Mechanism.RSA_PKCS, None),
    Mechanism.PSS_SHA256: (library.Mechanism.RSA_PKCS_PSS, (library.Mechanism.SHA256, library.MGF.SHA256, 32)),
    Mechanism.PSS_SHA384: (library.Mechanism.RSA_PKCS_PSS, (library.Mechanism.SHA384, library.MGF.SHA384, 48)),
    Mechanism.PSS_SHA512: (library.Mechanism.RSA_PKCS_PSS, (library.Mechanism.SHA512, library.MGF.SHA512, 64)),
}


class PinAttempt(Protocol):
    """A PIN that may be tried once; one of the two is called with the token's answer."""

    @property
    def pin(self) -> str: ...

    def accepted(self) -> None: ...

    def refused(self) -> None: ...


AskPin = Callable[[], PinAttempt]
"""Raises what keeps a PIN from being tried, a refusal before this one for example."""


class TokenSession:
    """With the handles of the keys it has used. `generation` is the module's when it was opened."""

    def __init__(
        self, module: Module, generation: int, token: pkcs11.Token, session: pkcs11.Session, profile_name: ProfileName
    ) -> None:
        self._module = module
        self._token = token
        self._session = session
        self._handles: dict[tuple[bytes | None, str | None], pkcs11.PrivateKey] = {}
        self._library = module.cryptoki.library()
        if profile_name is ProfileName.AUTO:
            profile_name = recognised(token.manufacturer_id, token.model, self._library)
        self._profile_name = profile_name
        self.profile: Profile = profile(profile_name)
        self.generation = generation

    @classmethod
    def open(
        cls, module: Module, name: TokenName, profile_name: ProfileName, ask_pin: AskPin, *, rw: bool
    ) -> TokenSession:
        """Raises WrongPin, and what `Module.find` and `ask_pin` raise. A PIN is tried exactly once."""
        with module.entered() as generation:
            token = module.find(name)
            with translated(f"the token with {name.text} does not open a session"):
                session = token.open(rw=rw)
            try:
                _log_in(module, name, token, session, ask_pin)
            except BaseException:
                with suppress(exceptions.PKCS11Error):
                    session.close()
                raise
            return cls(module, generation, token, session, profile_name)

    def facts(self) -> TokenFacts:
        """What the token says of itself. Sessions are counted with this one."""
        left = self._module.cryptoki.sessions_left(self._token.slot.slot_id)
        sessions = MOST_SESSIONS if left is None else min(MOST_SESSIONS, left + 1)
        return TokenFacts(
            label=self._token.label,
            serial=serial(self._token),
            manufacturer=self._token.manufacturer_id,
            model=self._token.model,
            library=self._library,
            profile=self._profile_name,
            sessions=sessions if self._module.cryptoki.locks else 1,
        )

    @contextmanager
    def _calling(self, doing: str) -> Generator[None]:
        with self._module.entered(self.generation), translated(doing):
            yield

    def abandon(self) -> None:
        """Close the session, if it can still be closed."""
        with suppress(Gone, Refused, Unsupported), self._calling("closing the session"):
            self._session.close()

    def check(self) -> None:
        """Ask the token anything. Raises Gone for a session that died or is no longer logged in."""
        with self._calling("asking the token"):
            list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: b"nobody's"}))
        self._require_login()

    def _require_login(self) -> None:
        """Without a login a token does not refuse: it shows no private keys."""
        if self._module.tells_logins and not self._module.cryptoki.logged_in(self._session.handle):
            raise Gone("the session is no longer logged in")

    def keys(self, wanted: Callable[[str], bool]) -> list[FoundKey]:
        """The private keys whose CKA_LABEL is wanted."""
        with self._calling("listing the token's keys"):
            found: list[FoundKey] = []
            for key in list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})):
                try:
                    label = key[Attribute.LABEL]
                except UnicodeDecodeError:  # somebody else's key
                    continue
                if wanted(label):
                    cka_id = key[Attribute.ID]
                    found.append(FoundKey(cka_id, label, self._public_parts(cka_id)))
        if not found:
            self._require_login()
        return found

    def described(self, label_prefix: str, expected: Sequence[bytes]) -> list[DescribedKey]:
        """The private and secret keys whose CKA_LABEL begins with the prefix, with their attributes of now.

        Raises KeyGone when one of the expected CKA_IDs is not among them.
        """
        with self._calling("reading the attributes of the token's keys"):
            found: list[DescribedKey] = []
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY):
                secret = kind is ObjectClass.SECRET_KEY
                for key in list(self._session.get_objects({Attribute.CLASS: kind})):
                    label = description.label(key)
                    if label is None or not label.startswith(label_prefix):
                        continue
                    cka_id = key[Attribute.ID]
                    public = None if secret else self._public_parts(cka_id)
                    told = description.attributes(key)
                    found.append(DescribedKey(FoundKey(cka_id, label, public), told, secret))
        gone = set(expected) - {each.key.cka_id for each in found}
        if gone or not found:
            self._require_login()
        if gone:
            raise KeyGone(f"the token no longer has the key with CKA_ID {min(gone).hex()}")
        return found

    def seal(self, wanted: Seal) -> Sealed:
        """See sealing.py. A session that sees nothing would make another key. Raises KeyGone for no witness."""
        self._require_login()
        with self._calling("making a secret"):
            if wanted.witness is not None and not list(self._session.get_objects({Attribute.ID: wanted.witness})):
                raise KeyGone(f"the token no longer has the key with CKA_ID {wanted.witness.hex()}")
            return sealing.seal(self._session, wanted, self.profile)

    def _public_parts(self, cka_id: bytes) -> PublicParts | None:
        public = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: cka_id}))
        return _parts(public[0]) if len(public) == 1 else None

    def generate(self, wanted: Generate) -> PublicParts:
        """Make a key pair in the token.

        Raises Unsupported for a key type that the token lacks, Refused when the key is not what was asked for: it is
        destroyed then.
        """
        with self._calling(f"generating a key of type {wanted.kind}"):
            try:
                public, private = self._by_any_template(wanted)
            except LACKING as error:
                raise Unsupported(f"the token makes no keys of type {wanted.kind}: {return_value(error)}") from error
            try:
                check_attributes(private)
                check_id(private, wanted.cka_id)
                return _parts(public)
            except (Refused, Unsupported):
                private.destroy()
                public.destroy()
                raise

    def _by_any_template(self, wanted: Generate) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
        """Asked for less where the token refuses to be told so much: what the key became is looked at anyway."""
        *more, least = lesser(self.profile)
        for stated in more:
            with suppress(*_TEMPLATE_REFUSED):
                return self.generated(wanted, stated)
        return self.generated(wanted, least)

    def generated(self, wanted: Generate, stated: Profile) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
        """One try with one template, and nothing looked at yet."""
        public_template, private_template = templates(stated)
        capabilities = MechanismFlag.SIGN | MechanismFlag.VERIFY
        if wanted.modulus_bits is not None:
            return self._session.generate_keypair(
                library.KeyType.RSA,
                wanted.modulus_bits,
                id=wanted.cka_id,
                label=wanted.label,
                store=True,
                capabilities=capabilities,
                public_template=public_template,
                private_template=private_template,
            )
        parameters = {Attribute.EC_PARAMS: wanted.ec_parameters}
        return self._session.create_domain_parameters(library.KeyType.EC, parameters, local=True).generate_keypair(
            id=wanted.cka_id,
            label=wanted.label,
            store=True,
            capabilities=capabilities,
            public_template=public_template,
            private_template=private_template,
        )

    def sign(self, wanted: Sign) -> Iterator[bytes]:
        """The raw signatures, one by one: r‖s for EC keys. Raises Gone, and PermanentlyUnusable for two keys."""
        mechanism, parameter = _MECHANISMS[wanted.mechanism]
        with self._calling("signing"):
            key = self._private_key(wanted.cka_id, wanted.label)
            for payload in wanted.payloads:
                yield self._signed(key, payload, mechanism, parameter)

    def _signed(
        self,
        key: pkcs11.PrivateKey,
        payload: bytes,
        mechanism: library.Mechanism,
        parameter: tuple[library.Mechanism, library.MGF, int] | None,
    ) -> bytes:
        for pause in PAUSES if self.profile.throttles else PAUSES[:1]:
            try:
                return key.sign(payload, mechanism=mechanism, mechanism_param=parameter)
            except exceptions.FunctionFailed:
                time.sleep(pause)
            except exceptions.DeviceMemory as error:
                if not self.profile.audit_log:
                    raise Busy("signing: CKR_DEVICE_MEMORY: the device has no memory left for it") from error
                raise Busy(
                    "signing: CKR_DEVICE_MEMORY: the device's audit log is full, most likely, and it is told to keep "
                    "it: read the log and set its index (yubihsm-shell: get logs, set index); see docs/runbooks/hsm.md"
                ) from error
        return key.sign(payload, mechanism=mechanism, mechanism_param=parameter)

    def _private_key(self, cka_id: bytes | None, label: str | None) -> pkcs11.PrivateKey:
        key = self._handles.get((cka_id, label))
        if key is None:
            name = Attribute.LABEL if cka_id is None else Attribute.ID
            template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, name: label if cka_id is None else cka_id}
            words = f"label {label!r}" if cka_id is None else f"CKA_ID {cka_id.hex()}"
            found = list(self._session.get_objects(template))
            if not found:
                self._require_login()
                raise KeyGone(f"the token no longer has the key with {words}")
            if len(found) > 1:
                raise PermanentlyUnusable(f"the token has {len(found)} private keys with {words}")
            key = self._handles[cka_id, label] = found[0]
        return key

    def relabel(self, cka_id: bytes, label: str) -> None:
        """Change the CKA_LABEL of both halves. Raises Refused for a token that does not."""
        with self._calling("labelling a key"):
            for entry in list(self._session.get_objects({Attribute.ID: cka_id})):
                entry[Attribute.LABEL] = label

    def destroy(self, cka_id: bytes) -> None:
        """Destroy both halves; a key that is gone already is no error."""
        with self._calling("destroying a key"):
            self._handles.pop((cka_id, None), None)
            entries = list(self._session.get_objects({Attribute.ID: cka_id}))
            if not entries:
                self._require_login()
            for entry in entries:
                with suppress(exceptions.ObjectHandleInvalid):  # some devices' halves end together
                    entry.destroy()


MOST_SESSIONS = 64


def _log_in(module: Module, name: TokenName, token: pkcs11.Token, session: pkcs11.Session, ask_pin: AskPin) -> None:
    """Unless another session of this process did: login is per process and token (PKCS#11 2.40, 5.6)."""
    with module.logging_in:
        if module.cryptoki.logged_in(session.handle):
            return
        if TokenFlag.USER_PIN_LOCKED in token.flags:
            raise WrongPin(f"the user PIN of the token with {name.text} is locked; unlock it with the SO PIN")
        attempt = ask_pin()
        code = module.cryptoki.login(session.handle, attempt.pin)
        if code in _WRONG_PIN:
            attempt.refused()
            raise WrongPin(f"the token with {name.text} refused the PIN: {_WRONG_PIN[code]}")
        if code == CKR_USER_PIN_NOT_INITIALIZED:
            raise Refused(f"the token with {name.text} has no user PIN yet; set one with the SO PIN")
        if code not in (CKR_OK, CKR_USER_ALREADY_LOGGED_IN):
            raise Gone(f"the token with {name.text} does not log in: C_Login gave {code:#x}")
        attempt.accepted()
        module.tells_logins = module.cryptoki.logged_in(session.handle)


def _parts(public: pkcs11.PublicKey) -> PublicParts:
    if public[Attribute.KEY_TYPE] is library.KeyType.RSA:
        return PublicParts(modulus=public[Attribute.MODULUS], exponent=public[Attribute.PUBLIC_EXPONENT])
    return PublicParts(ec_parameters=public[Attribute.EC_PARAMS], ec_point=public[Attribute.EC_POINT])
