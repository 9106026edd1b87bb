"""What goes wrong in a worker, by names that reach the program."""

from __future__ import annotations

from keystores import errors


class Gone(errors.TemporarilyUnavailable):
    """The session, the token or the module no longer answers; opening it anew may help."""


class KeyGone(Gone):
    """The token answers, and the key is not there."""


class NoSession(errors.TemporarilyUnavailable):
    """The token has no session left for one more (CKR_SESSION_COUNT)."""


class Busy(errors.TemporarilyUnavailable):
    """The device is there and cannot do it now; opening anything anew would not help."""


class NoToken(errors.NotFound):
    """The module answers, and has no token of that name: a wrong name, or one that was pulled out."""


class WrongPin(errors.Refused):
    """The token refused the PIN."""


class OutOfStep(errors.PermanentlyUnusable):
    """The worker had a fault of its own."""


KINDS: dict[str, type[errors.KeyStoreError]] = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.AlreadyExists,
        errors.Unsupported,
        errors.InvalidArgument,
        errors.TemporarilyUnavailable,
        errors.PermanentlyUnusable,
        errors.Refused,
        Gone,
        KeyGone,
        NoSession,
        Busy,
        NoToken,
        WrongPin,
        OutOfStep,
    )
}


def kind(error: Exception) -> str:
    """The name under which an error travels: its own, or that of the nearest class that has one."""
    return next((each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS), OutOfStep.__name__)


def error(kind: str, text: str) -> errors.KeyStoreError:
    return KINDS.get(kind, OutOfStep)(text)
