"""A place on the web that documents are sent to: who it is, who we are to it, and how long it may take."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from identity import bundles, pem
from keystores import credentials
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable, Refused, TemporarilyUnavailable
from operations.files import read_secret
from operations.quoting import quote
from transport.tls import InProcessIdentity
from transport.web.client import HttpClient
from transport.web.trust import trusting
from transport.web.urls import Url

TIMEOUT = 20.0
"""Seconds for everything, from the name to the end of the answer."""

LARGEST_ANSWER = 64 * 1024

_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[ -~]*")
_SECRETS = frozenset({"authorization", "proxy-authorization", "cookie"})
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent"})
_TOKEN = re.compile(r"[!-~]+")

Identity = Callable[[], InProcessIdentity]


class WebTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that every plugin over HTTPS has.

    Files are read at each request, so that those which somebody renews are current.
    """

    url: str = ""
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    use_spire_svid: bool = False
    bearer_token_file: str = ""
    bearer_token_credential: str = ""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.url:
            raise InvalidArgument("url is missing: name where to send the bundle")
        if self.target.scheme != "https":
            raise InvalidArgument("url must begin with https://: a bundle that anybody can change on its way is no use")
        if bool(self.client_cert_path) != bool(self.client_key_path):
            raise InvalidArgument("client_cert_path and client_key_path need each other: set both or none")
        if self.use_spire_svid and self.client_cert_path:
            raise InvalidArgument("use_spire_svid and client_cert_path exclude each other: keep one")
        if self.bearer_token_file and self.bearer_token_credential:
            raise InvalidArgument("bearer_token_file and bearer_token_credential exclude each other: keep one")
        for name, value in self.headers.items():
            if name.lower() in _SECRETS:
                raise InvalidArgument(f"headers: {name} is a secret, which has no place here: use bearer_token_file")
            if name.lower() in _OURS or not _FIELD.fullmatch(name) or not _VALUE.fullmatch(value):
                raise InvalidArgument(f"headers: {quote(name)} cannot be set here, or not to this value: remove it")

    @property
    def target(self) -> Url:
        """Raises InvalidArgument."""
        return Url.parse(self.url)

    def check_files(self) -> None:
        """Raises ConfigurationError. A systemd credential is there only when systemd starts the server."""
        self._context(None)
        if self.bearer_token_file:
            self._token()

    async def send(self, method: str, content_type: str, body: bytes, identity: Identity) -> None:
        """Raises SpireError unless the answer is a success; redirects are none, since they lead elsewhere."""
        url = self.target
        place = f"{url.origin}{url.target.partition('?')[0]}"  # a query may hold a secret
        own = identity() if self.use_spire_svid else None
        try:
            async with asyncio.timeout(TIMEOUT):
                context, token = await asyncio.to_thread(lambda: (self._context(own), self._token()))
                headers = {**self.headers, "Content-Type": content_type}
                if token is not None:
                    headers["Authorization"] = f"Bearer {token}"
                client = HttpClient(os.environ, lambda: context)
                try:
                    answer = await client.request(method, url, headers=headers, body=body, largest=LARGEST_ANSWER)
                finally:
                    client.close()
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"{place} did not answer within {TIMEOUT:g} s") from error
        if not 200 <= answer.status < 300:
            raise _failure(method, place, answer.status)

    def _context(self, own: InProcessIdentity | None) -> ssl.SSLContext:
        """Blocks. Raises ConfigurationError."""
        try:
            context = trusting(self.ca_cert_path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"ca_cert_path {self.ca_cert_path}: {_reason(error)}") from error
        if self.client_cert_path:
            try:
                context.load_cert_chain(self.client_cert_path, self.client_key_path, _no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                places = f"client_cert_path {self.client_cert_path}, client_key_path {self.client_key_path}"
                raise ConfigurationError(f"{places}: {_reason(error)}") from error
        elif own is not None:
            _show(context, own)
        return context

    def _token(self) -> str | None:
        """Blocks. Raises ConfigurationError."""
        if self.bearer_token_file:
            token = read_secret(self.bearer_token_file, "bearer token")
        elif self.bearer_token_credential:
            path = credentials.path("bearer_token_credential", self.bearer_token_credential)
            try:
                with path.open(encoding="utf-8", errors="replace") as file:
                    token = file.read(LARGEST_ANSWER).removesuffix("\n")
            except OSError as error:
                raise ConfigurationError(f"bearer_token_credential: {path.name}: {error.strerror}") from error
        else:
            return None
        if not _TOKEN.fullmatch(token):
            raise ConfigurationError("the bearer token must be one line without spaces: correct its file")
        return token


def _show(context: ssl.SSLContext, own: InProcessIdentity) -> None:
    """OpenSSL takes keys from files only here: this one is in memory, and gone with its descriptor."""
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "w") as file:
        file.write(bundles.to_pem(own.chain) + pem.private_key(own.private_key))
        file.flush()
        context.load_cert_chain(Path("/proc/self/fd", str(descriptor)))


def _no_password() -> str:
    raise ValueError("the key has a password: give one without, that only the server can read")


def _failure(method: str, place: str, status: int) -> Exception:
    said = f"{place} answered {status} to {method}"
    if status in (401, 403):
        return Refused(f"{said}: check the token or client certificate, and what they may do there")
    if status in (408, 425, 429) or status >= 500:
        return TemporarilyUnavailable(f"{said}: look there")
    if 300 <= status < 400:
        return PermanentlyUnusable(f"{said}: redirects are not followed; set url to where it leads")
    return PermanentlyUnusable(f"{said}: check url and method")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
