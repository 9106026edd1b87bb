"""Credentials for registries: those configured here, then those that container tools keep (`docker login`).

Docker's config.json and podman's auth.json have them in clear, or name a helper, `docker-credential-NAME`, that does.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from attestors.sigstore.configuration import RegistryCredential
from attestors.sigstore.references import DOCKER_HUB, Repository
from operations.documents import Malformed, decode
from operations.errors import Refused
from operations.logs import Logger
from operations.quoting import quote

_HUB_KEY = f"https://{DOCKER_HUB}/v1/"
_MOST_BYTES = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 10.0
_TOKEN_USER = "<token>"  # noqa: S105 - what a helper calls a user without a name


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's name and password, a token to exchange (`identity_token`), or one to show (`registry_token`)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """The value of an Authorization header (RFC 7617)."""
        if not (self.username and self.password):
            return None
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


class Keychain:
    """Finds the credential for a repository."""

    def __init__(
        self,
        configured: Mapping[str, RegistryCredential],
        environment: Mapping[str, str],
        log: Logger,
        workers: Executor | None = None,
    ) -> None:
        """Files are read by `workers`."""
        self._workers = workers
        self._environment = environment
        self._configured: dict[str, Credential] = {}
        for registry, given in configured.items():
            if given.username and given.password:
                self._configured[_host(registry)] = Credential(given.username, given.password)
            elif given.username or given.password:
                log.warning(
                    "Incomplete credentials for registry; both username and password must be provided",
                    registry=registry,
                )

    async def find(self, repository: Repository) -> Credential | None:
        """Raises Refused when what container tools keep cannot be read."""
        configured = self._configured.get(repository.registry)
        if configured is not None:
            return configured
        kept = await asyncio.get_running_loop().run_in_executor(self._workers, _read, self._environment)
        for key in (str(repository), repository.registry):
            found = await self._kept(kept, _HUB_KEY if key == DOCKER_HUB else key)
            if found is not None:
                return found
        return None

    async def _kept(self, kept: _File, key: str) -> Credential | None:
        helper = kept.cred_helpers.get(_host(key)) or kept.creds_store
        if helper:
            return await _ask(helper, key, self._environment)
        exact = kept.auths.get(key)
        if exact is None:
            exact = next((entry for name, entry in kept.auths.items() if _host(name) == key), None)
        return None if exact is None else exact.credential()


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def credential(self) -> Credential | None:
        username, password = self.username, self.password
        if self.auth:
            try:
                username, _, password = base64.b64decode(self.auth, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise Refused("the registry credentials of docker or podman are malformed: log in anew") from error
        found = Credential(username, password.strip("\0"), self.identitytoken, self.registrytoken)
        return None if found == Credential() else found


class _File(msgspec.Struct, frozen=True, rename={"cred_helpers": "credHelpers", "creds_store": "credsStore"}):
    auths: Mapping[str, _Entry] = {}
    cred_helpers: Mapping[str, str] = {}
    creds_store: str = ""


def _host(registry: str) -> str:
    """The registry that a key names, be it a host or a URL."""
    host = registry.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DOCKER_HUB if host == "docker.io" else host


def _read(environment: Mapping[str, str]) -> _File:
    path = _place(environment)
    if path is None:
        return _File()
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise Refused(f"cannot read registry credentials: {path} is larger than {_MOST_BYTES} bytes")
        return decode(data, _File)
    except OSError as error:
        raise Refused(f"cannot read registry credentials in {path}: {error.strerror}") from error
    except Malformed as error:
        raise Refused(f"cannot read registry credentials: {path} is malformed") from error  # and is not shown


def _place(environment: Mapping[str, str]) -> Path | None:
    """Docker's file, then podman's, as other tools look for them."""
    home = environment.get("HOME")
    docker = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    runtime = environment.get("XDG_RUNTIME_DIR")
    settings = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    candidates = (
        f"{docker}/config.json" if docker else "",
        environment.get("REGISTRY_AUTH_FILE", ""),
        f"{runtime}/containers/auth.json" if runtime else "",
        f"{settings}/containers/auth.json" if settings else "",
    )
    return next((Path(candidate) for candidate in candidates if candidate and Path(candidate).is_file()), None)


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


async def _ask(helper: str, key: str, environment: Mapping[str, str]) -> Credential | None:
    """None when the helper has none, or does not end well: then the registry is asked without."""
    if not _HELPER.fullmatch(helper):
        raise Refused(f"the credential helper {quote(helper[:100])} cannot be used: its name is malformed")
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}",
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        raise Refused(f"docker-credential-{helper} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(_HELPER_SECONDS):
            output, _ = await process.communicate(key.encode())
    except TimeoutError as error:
        raise Refused(f"docker-credential-{helper} gave no answer within {_HELPER_SECONDS:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode != 0:
        return None
    try:
        answer = decode(output, _Answer)
    except Malformed as error:
        raise Refused(f"docker-credential-{helper} gave no proper answer") from error
    if answer.username == _TOKEN_USER:
        return Credential(identity_token=answer.secret)
    return Credential(answer.username, answer.secret)
