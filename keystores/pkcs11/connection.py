"""One thread's way to the token: a session that is opened anew when it dies. It blocks; worker.py owns it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from keystores.errors import NotFound, PermanentlyUnusable, TemporarilyUnavailable
from keystores.pkcs11.configuration import TokenName
from keystores.pkcs11.module import Gone, KeyGone, Module, TokenSession, WrongPin
from keystores.pkcs11.pin import Pin

T = TypeVar("T")

HOLD_OFF = 1.0
"""Seconds in which a token that was away is not asked again."""


class Connection:
    def __init__(self, module_path: str, name: TokenName, pin: Pin) -> None:
        self._module_path = module_path
        self._name = name
        self._pin = pin
        self._module: Module | None = None
        self._session: TokenSession | None = None
        self._ask_again_at = 0.0

    def open(self) -> None:
        """Raises NotFound for a missing module or token, Refused for the PIN, TemporarilyUnavailable."""
        self._opened()

    def run(self, work: Callable[[TokenSession], T], *, repeatable: bool = True) -> T:
        """Do the work on a live session. A dead one is opened anew, then the module is initialised anew.

        Raises TemporarilyUnavailable while the device is away, PermanentlyUnusable for a key that is gone from a
        token that answers. Work that must not happen twice is not `repeatable`: its failure is the caller's.
        """
        if time.monotonic() < self._ask_again_at:
            raise TemporarilyUnavailable(f"the token with {self._name.text} is away; it is asked again shortly")
        recoveries = (self._keep, self._drop, self._reload) if repeatable else (self._keep,)
        failure: Exception = TemporarilyUnavailable("never tried")
        for recover in recoveries:
            try:
                recover()
                session = self._opened()
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
        self._ask_again_at = time.monotonic() + HOLD_OFF
        raise TemporarilyUnavailable(f"the token with {self._name.text} does not answer: {failure}") from failure

    def close(self) -> None:
        """Give back the session and the module."""
        self._drop()
        if self._module is not None:
            self._module.release()
            self._module = None

    def _opened(self) -> TokenSession:
        if self._session is None:
            if self._module is None:
                self._module = Module.acquire(self._module_path)
            with self._pin.attempt() as attempt:
                try:
                    self._session = TokenSession.open(self._module, self._name, attempt.pin)
                except WrongPin as error:
                    raise attempt.refused() from error
                attempt.accepted()
        return self._session

    def _keep(self) -> None:
        """The first try takes the session as it is."""

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.abandon()

    def _reload(self) -> None:
        generation = self._module.generation if self._module is not None else None
        self._drop()
        if self._module is not None and generation is not None:
            self._module.reload(generation)
