"""Further powers of key managers, for operators: what keys there are, whether they are what they seem, and their end.

A key manager has those that its class fulfils; whoever asks looks with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from plugins.keymanager import KeyType


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a key manager knows of one key, used or not. Times are Unix seconds.

    `handle` names the key beyond doubt: a CKA_ID or a TPM Name in hex, or the id where there is nothing else. `id` is
    the name it has or, once it is retired, had. `token` is the place: a token's label and serial, a TPM's manufacturer,
    a file. `attributes` go by their standard's names, such as CKA_SENSITIVE or fixedTPM. `dispose_at` is when a retired
    key is destroyed, if nothing makes room before. `named` is false for a key that no id of this key manager names
    although it is not retired, such as one of another server that shares the namespace. `last_signature_at` is since
    the process started. None is what is not known, or has not been.
    """

    handle: str
    id: str
    key_type: KeyType | None
    public_key: bytes | None
    label: str
    token: str
    attributes: Mapping[str, bool] = field(default_factory=dict[str, bool])
    created_at: int | None = None
    retired_at: int | None = None
    dispose_at: int | None = None
    named: bool = True
    last_signature_at: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found, in words for an operator."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Attestation:
    """The device's own statement about a key, in the device's format (`format` names it), as bytes to keep."""

    format: str
    statement: bytes
    signature: bytes
    certificates: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """What verifying one key gave. It stands when every check passed."""

    record: KeyRecord
    checks: Sequence[Check]
    attestation: Attestation | None = None

    @property
    def stands(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


@runtime_checkable
class Inventory(Protocol):
    async def inventory(self) -> Sequence[KeyRecord]:
        """Every key under this key manager's namespace, retired ones and those that nothing refers to included.

        Raises the errors of keystores.errors.
        """
        ...


@runtime_checkable
class Proving(Protocol):
    async def prove(self, key_id: str) -> Proof:
        """Have the key sign a fresh challenge, read its attributes back, get the device's attestation if there is one.

        A check that fails is in the proof; only a key or device that cannot be asked raises.
        """
        ...


@runtime_checkable
class Disposing(Protocol):
    async def dispose(self, handle: str) -> None:
        """Destroy a key that no id names any more, at once. Raises Refused for one in use, NotFound."""
        ...


@runtime_checkable
class Withdrawing(Protocol):
    async def withdraw(self, handle: str) -> None:
        """Destroy a key that an id still names, at once; the id names nothing afterwards. Raises NotFound.

        Whoever asks answers for nobody using the key, now or soon.
        """
        ...
