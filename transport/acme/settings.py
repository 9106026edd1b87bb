"""With which CA, for which name, in whose name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote
from transport.web.urls import Url, address

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[!#-+\--;=>@-~]+@[!#-+\--;=>@-~]+")  # one address, without header fields (RFC 8555, 7.3)
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """No `directory_url` means Let's Encrypt's; no `email`, an account without a contact.

    Raises ConfigurationError for what no CA would take.
    """

    directory_url: str
    domain_name: str
    email: str
    tos_accepted: bool

    def __post_init__(self) -> None:
        _check_name(self.domain_name)
        directory = self.directory
        if directory.scheme != "https":
            raise ConfigurationError(f"acme: directory_url {quote(str(directory))} is not https (RFC 8555, 6.1)")
        if self.email and not _EMAIL.fullmatch(self.email):
            raise ConfigurationError(f"acme: email {quote(self.email[:100])} is not one address, as ops@example.org is")

    @property
    def directory(self) -> Url:
        try:
            return Url.parse(self.directory_url or LETS_ENCRYPT)
        except InvalidArgument as error:
            raise ConfigurationError(f"acme: directory_url: {error}") from error

    @property
    def name(self) -> str:
        """The domain's name in small letters, without a dot at its end."""
        return normal(self.domain_name)


def normal(name: str) -> str:
    return name.lower().removesuffix(".")


def _check_name(domain: str) -> None:
    name = normal(domain)
    labels = name.split(".")
    if not name:
        raise ConfigurationError("acme: domain_name is missing: give the name that others reach this server by")
    if not name.isascii():
        raise ConfigurationError(f"acme: domain_name {quote(name[:100])}: write it in ASCII, each label as xn--…")
    if address(name) is not None or len(labels) < 2 or len(name) > _LONGEST_NAME:
        raise ConfigurationError(
            f"acme: domain_name {quote(name[:100])}: give a full name of the DNS, as bundle.example.org is"
        )
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigurationError(f"acme: domain_name {quote(name[:100])} is no name of a host: no wildcards, no port")
