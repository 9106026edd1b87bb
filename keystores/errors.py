"""What a key store raises: one class per thing a caller can do about it, the vendor's code chained."""

from __future__ import annotations

from operations import errors


class KeyStoreError(errors.SpireError):
    """Base of the key stores' errors."""


class NotFound(KeyStoreError, errors.NotFound):
    """No key, token or module has that name."""


class AlreadyExists(KeyStoreError, errors.AlreadyExists):
    """Two objects answer to one name, or a key is there already."""


class Unsupported(KeyStoreError, errors.Unsupported):
    """The device lacks this key type or mechanism."""


class InvalidArgument(KeyStoreError, errors.InvalidArgument):
    """The caller's input does not fit the key, such as a digest of the wrong length."""


class TemporarilyUnavailable(KeyStoreError, errors.TemporarilyUnavailable):
    """The device is away, busy or slow; the call may go through later."""


class PermanentlyUnusable(KeyStoreError, errors.PermanentlyUnusable):
    """The key is lost or lies; it stays so until an operator acts."""


class Refused(KeyStoreError, errors.Refused):
    """A PIN, an attribute or a policy said no."""
