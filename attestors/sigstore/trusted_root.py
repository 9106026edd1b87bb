"""`trusted_root.json`: Sigstore's services with their keys and certificates, in one document.

https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography import x509

from attestors.sigstore.trust import Authority, Log, Period, log_id, parse_time, read_key
from operations.documents import Malformed, decode
from operations.errors import ConfigurationError, InvalidArgument


class _Period(msgspec.Struct, frozen=True):
    start: str | None = None
    end: str | None = None

    def parsed(self) -> Period:
        return Period(parse_time(self.start), parse_time(self.end))


class _Key(msgspec.Struct, frozen=True, rename="camel"):
    raw_bytes: str
    valid_for: _Period = _Period()


class _Log(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _Key


class _Certificate(msgspec.Struct, frozen=True, rename="camel"):
    raw_bytes: str


class _Chain(msgspec.Struct, frozen=True):
    certificates: tuple[_Certificate, ...]


class _Authority(msgspec.Struct, frozen=True, rename="camel"):
    cert_chain: _Chain
    valid_for: _Period = _Period()


class TrustedRoot(msgspec.Struct, frozen=True, rename="camel"):
    """As it was read; what is in it is looked at when it is asked for."""

    certificate_authorities: tuple[_Authority, ...] = ()
    tlogs: tuple[_Log, ...] = ()
    ctlogs: tuple[_Log, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> TrustedRoot:
        """Raises ConfigurationError."""
        try:
            return decode(data, cls)
        except Malformed as error:
            raise ConfigurationError(f"trusted_root.json cannot be used: {error}") from error

    def fulcio(self) -> tuple[Authority, ...]:
        """Raises ConfigurationError, as the others do."""
        return tuple(self._parsed(_authority, each) for each in self.certificate_authorities)

    def rekor(self) -> dict[str, Log]:
        return self._logs(self.tlogs)

    def ct(self) -> dict[str, Log]:
        return self._logs(self.ctlogs)

    def _logs(self, logs: Sequence[_Log]) -> dict[str, Log]:
        parsed = [self._parsed(_log, each) for each in logs]
        return {log_id(each.key): each for each in parsed}

    @staticmethod
    def _parsed(parse: Any, value: object) -> Any:
        try:
            return parse(value)
        except (InvalidArgument, ValueError) as error:
            raise ConfigurationError(f"trusted_root.json cannot be used: {error}") from error


def _authority(authority: _Authority) -> Authority:
    chain = [x509.load_der_x509_certificate(_decoded(each.raw_bytes)) for each in authority.cert_chain.certificates]
    return Authority(tuple(chain), authority.valid_for.parsed())


def _log(log: _Log) -> Log:
    return Log(read_key(_decoded(log.public_key.raw_bytes)), log.public_key.valid_for.parsed())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidArgument("a value is not in base64") from error
