"""The two questions that Docker's HTTP API, which Podman has too, is asked: about a container, and about an image."""

from __future__ import annotations

import asyncio
from typing import TypeVar
from urllib.parse import quote as percent

import msgspec

from attestors.docker.endpoints import Endpoint
from operations.documents import Malformed, decode
from operations.errors import NotFound, Refused, SpireError, TemporarilyUnavailable
from transport.http_client import Incoming, Query, asking
from transport.limits import MIB

T = TypeVar("T")

_NEWEST = (1, 55)
"""The API's version up to which its answers are known to have what is read here."""

_LARGEST_ANSWER = MIB
_LARGEST_MESSAGE = 1024
_NOT_FOUND = 404
_NOBODY_THERE = (FileNotFoundError, ConnectionRefusedError, PermissionError)


class ContainerConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """`env` has `NAME=value`; `image` is as it was given to `run`."""

    labels: dict[str, str] | None = None
    env: tuple[str, ...] | None = None
    image: str = ""


class State(msgspec.Struct, frozen=True, rename="pascal"):
    """`pid` is that of the container's first process, 0 while there is none."""

    status: str = ""
    pid: int = 0


class ContainerAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    """`image` is the id of the image that it runs, whatever bears the image's name by now."""

    config: ContainerConfig
    image: str = ""
    state: State | None = None


class ImageAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    """`id` is the digest of the image's configuration, `repo_digests` those of its manifests: `repository@digest`."""

    id: str = ""
    repo_digests: tuple[str, ...] | None = None


class Engine:
    """One daemon. It is asked over a new connection each time, so a daemon that restarts is no matter."""

    def __init__(self, endpoint: Endpoint, setting: str, version: str = "") -> None:
        """`setting` is where the endpoint comes from, for who has to change it.

        Without a version of the API, such as 1.41, the daemon is asked for its own, once.
        """
        self._endpoint = endpoint
        self._setting = setting
        self._given = self._version = version

    @property
    def name(self) -> str:
        return self._endpoint.text

    async def container(self, container_id: str, *, within: float) -> ContainerAnswer:
        """`within` is in seconds. Raises NotFound; Refused and TemporarilyUnavailable, naming the socket."""
        return await self._get(
            f"/containers/{percent(container_id, safe='', errors='surrogateescape')}/json", ContainerAnswer, within
        )

    async def image(self, reference: str, *, within: float) -> ImageAnswer:
        """As `container`."""
        return await self._get(
            f"/images/{percent(reference, safe='/:@', errors='surrogateescape')}/json", ImageAnswer, within
        )

    async def _get(self, path: str, kind: type[T], within: float) -> T:
        try:
            async with asyncio.timeout(within):
                target = f"{self._endpoint.base}/v{await self._known_version()}{path}"
                async with asking(self._endpoint.service, Query(target)) as response:
                    if response.status != 200:
                        raise await self._refusal(response)
                    return self._decode(await response.body(_LARGEST_ANSWER), kind)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"{self.name}: no answer within {within:.1f} s") from error
        except TemporarilyUnavailable as error:
            if isinstance(error.__cause__, _NOBODY_THERE):
                raise TemporarilyUnavailable(f"{error}; check that the engine runs, and {self._setting}") from error
            raise

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return decode(body, kind)
        except Malformed as error:
            raise Refused(f"{self.name}: the answer is none of a container engine: {error}") from error

    async def _refusal(self, response: Incoming) -> SpireError:
        text = (await response.beginning(_LARGEST_MESSAGE)).decode(errors="replace").strip()
        reason = f"Error response from daemon: {_message(text) or f'status {response.status}'} ({self.name})"
        if response.status == _NOT_FOUND:
            return NotFound(reason)
        # It may be another daemon by now, with another version of the API.
        self._version = self._given
        return TemporarilyUnavailable(reason)

    async def _known_version(self) -> str:
        if not self._version:
            self._version = await self._negotiated()
        return self._version

    async def _negotiated(self) -> str:
        """The daemon's version of the API, but none newer than what is known here; that one too if it does not say."""
        async with asking(self._endpoint.service, Query(f"{self._endpoint.base}/_ping", "HEAD")) as response:
            offered = _version(response.headers.get("api-version", ""))
        return ".".join(map(str, min(offered, _NEWEST)))


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    try:
        return int(major), int(minor)
    except ValueError:
        return _NEWEST


class _Message(msgspec.Struct, frozen=True):
    message: str = ""


def _message(text: str) -> str:
    """What a daemon's error says: JSON, or plain text from what may stand before it. On one line."""
    try:
        found = decode(text, _Message).message
    except Malformed:
        found = text
    return " ".join(found.split())
