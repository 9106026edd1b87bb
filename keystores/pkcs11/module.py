"""A PKCS#11 library in a worker process: loaded, initialised, its tokens found, its return values told apart.

This module and session.py are the ones that import `pkcs11`, and only a worker imports them. python-pkcs11 would call
C_Initialize(NULL), after which SoftHSM answers threads with CKR_GENERAL_ERROR; so cryptoki.py calls it, on the same
library, and python-pkcs11 is given the initialised module.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pkcs11
from pkcs11 import TokenFlag, _pkcs11, exceptions

from keystores.errors import NotFound, Refused, Unsupported
from keystores.pkcs11.cryptoki import CKR_OK, Cryptoki
from keystores.pkcs11.failures import Gone, NoSession, NoToken
from keystores.pkcs11.protocol import TokenName

RELOAD_PATIENCE = 2.0
"""Seconds for other threads to leave the module before it is initialised anew."""

LACKING = (
    exceptions.MechanismInvalid,
    exceptions.MechanismParamInvalid,
    exceptions.KeySizeRange,
    exceptions.DomainParamsInvalid,
    exceptions.FunctionNotSupported,
    exceptions.AttributeValueInvalid,
)
REFUSING = (
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


_UNNAMED_REFUSALS = {"Unmapped error code 0x1b": "CKR_ACTION_PROHIBITED"}
"""Refusals that python-pkcs11 has no class for, by its words."""


def return_value(error: exceptions.PKCS11Error) -> str:
    """The standard's name of the code behind an error, such as CKR_PIN_INCORRECT."""
    if type(error) is exceptions.PKCS11Error:
        return _UNNAMED_REFUSALS.get(str(error), str(error))
    return "CKR" + re.sub(r"(?<!^)(?=[A-Z])|^", "_", type(error).__name__).upper()


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Turns the library's errors into ours. `doing` begins their text."""
    try:
        yield
    except LACKING as error:
        raise Unsupported(f"{doing}: the token cannot do it: {return_value(error)}") from error
    except REFUSING as error:
        raise Refused(f"{doing}: the token refuses it: {return_value(error)}") from error
    except exceptions.SessionCount as error:
        raise NoSession(f"{doing}: the token has no session left: {return_value(error)}") from error
    except exceptions.PKCS11Error as error:
        if str(error) in _UNNAMED_REFUSALS:
            raise Refused(f"{doing}: the token refuses it: {return_value(error)}") from error
        raise Gone(f"{doing}: {return_value(error)}") from error


def _matches(name: TokenName, token: pkcs11.Token) -> bool:
    pairs = (
        (name.label, token.label),
        (name.serial, serial(token)),
        (name.manufacturer, token.manufacturer_id),
        (name.model, token.model),
    )
    return all(wanted is None or wanted == actual for wanted, actual in pairs)


def serial(token: pkcs11.Token) -> str:
    return token.serial.decode("ascii", "replace")


class Module:
    """The loaded module. `generation` grows each time it is initialised, which ends all sessions and logins."""

    def __init__(self, path: str) -> None:
        """Raises NotFound when there is none, Gone when it does not start."""
        self.path = path
        self.generation = 0
        self.logging_in = threading.Lock()
        self.tells_logins = True  # by C_GetSessionInfo; each session logs in where it does not
        self._inside = 0
        self._quiet = threading.Condition()
        if not Path(path).is_file():
            raise NotFound(f"module_path: there is no PKCS#11 module at {path}; install it or correct the path")
        try:
            self.cryptoki = Cryptoki(path)
            # __new__ loads the library; __init__ would initialise it, without locking.
            self.lib = _pkcs11.lib.__new__(_pkcs11.lib, path)
        except (OSError, AttributeError, exceptions.PKCS11Error) as error:
            raise NotFound(f"module_path: {path} is no PKCS#11 module that can be loaded: {error}") from error
        self._initialize()

    def _initialize(self) -> None:
        code = self.cryptoki.initialize()
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
            self.cryptoki.finalize()
            self._initialize()

    def finalize(self) -> None:
        """Give the module back, unless a call into it hangs."""
        with self._quiet:
            if self._quiet.wait_for(lambda: not self._inside, RELOAD_PATIENCE):
                self.cryptoki.finalize()

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
        with translated(f"PKCS#11 module {self.path}: the tokens cannot be listed"):
            tokens = [slot.get_token() for slot in self.lib.get_slots(token_present=True)]
        initialised = [token for token in tokens if TokenFlag.TOKEN_INITIALIZED in token.flags]
        matching = [token for token in initialised if _matches(name, token)]
        if not matching:
            labels = ", ".join(repr(token.label) for token in initialised) or "none"
            raise NoToken(f"PKCS#11 module {self.path} has no token with {name.text}; the tokens there are: {labels}")
        if len(matching) > 1:
            raise Refused(f"{len(matching)} tokens have {name.text}; name one by token_serial")
        return matching[0]
