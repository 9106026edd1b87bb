"""One thread's way to the token: a session that is opened anew when it dies. It blocks; a worker's thread owns it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from keystores.errors import NotFound, PermanentlyUnusable
from keystores.pkcs11.failures import Gone, KeyGone
from keystores.pkcs11.module import Module
from keystores.pkcs11.profiles import ProfileName
from keystores.pkcs11.protocol import TokenName
from keystores.pkcs11.session import AskPin, TokenSession

T = TypeVar("T")

OVERLOOKED = (0.05, 0.2)
"""Seconds until a start looks once more for a token that it did not see."""


class Connection:
    """`rw` for a session that makes and destroys keys; signing needs none of its kind, of which there may be few."""

    def __init__(
        self, module: Module, name: TokenName, profile: ProfileName, ask_pin: AskPin, *, rw: bool = True
    ) -> None:
        self._module = module
        self._name = name
        self._profile = profile
        self._ask_pin = ask_pin
        self._rw = rw
        self._session: TokenSession | None = None

    def open(self) -> TokenSession:
        """Raises NotFound for a missing token, WrongPin and what asking for a PIN raises, Gone, NoSession."""
        if self._session is None:
            self._session = TokenSession.open(self._module, self._name, self._profile, self._ask_pin, rw=self._rw)
        return self._session

    def start(self) -> TokenSession:
        """`open` for the first time, when a token that is not seen is refused: the module is initialised anew before.

        SoftHSM overlooks a token to which another process writes as it looks.
        """
        for pause in OVERLOOKED:
            try:
                return self.open()
            except (Gone, NotFound):
                time.sleep(pause)
                self._reload()
        return self.open()

    def run(self, work: Callable[[TokenSession], T], *, repeatable: bool = True) -> T:
        """Do the work on a live session. A dead one is opened anew, then the module is initialised anew.

        Raises Gone while the device is away, PermanentlyUnusable for a key that is gone from a token that answers. Work
        that must not happen twice is not `repeatable`: its failure is the caller's.
        """
        recoveries = (self._keep, self._drop, self._reload) if repeatable else (self._keep,)
        failure: Exception = Gone("never tried")
        for recover in recoveries:
            try:
                recover()
                session = self.open()
            except (Gone, NotFound) as error:
                failure = error
                continue
            try:
                return work(session)
            except Gone as error:
                failure = error
        self._drop()
        if isinstance(failure, KeyGone):
            raise PermanentlyUnusable(str(failure)) from failure
        raise Gone(f"the token with {self._name.text} does not answer: {failure}") from failure

    def close(self) -> None:
        self._drop()

    def _keep(self) -> None:
        """The first try takes the session as it is."""

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.abandon()

    def _reload(self) -> None:
        # A session that could not even be opened is one of the module as it is now.
        generation = self._session.generation if self._session is not None else self._module.generation
        self._drop()
        self._module.reload(generation)
