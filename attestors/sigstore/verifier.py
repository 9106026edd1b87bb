"""From a reference to an image to the selectors that its verified signatures give."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

from attestors.sigstore import judgement, trust_files
from attestors.sigstore.attached import Attached
from attestors.sigstore.configuration import Configuration
from attestors.sigstore.credentials import Keychain
from attestors.sigstore.http import HttpClient
from attestors.sigstore.identities import Identities
from attestors.sigstore.references import Reference
from attestors.sigstore.registry import Registry
from attestors.sigstore.rekor import PUBLIC_REKOR, Rekor
from attestors.sigstore.selectors import selectors_of
from attestors.sigstore.trust import TrustRoot
from operations.errors import SpireError, TemporarilyUnavailable
from operations.logs import Logger, get

IMAGE_SECONDS: Final = 60.0
"""For all of one image: registry, log, and the checks."""
PREPARE_SECONDS: Final = 60.0

_AT_ONCE = 8
_MOST_WAITING = 256
_MOST_REMEMBERED = 4096
_WORKERS = 2
_TRUST_SECONDS = 24 * 3600.0
_RETRY_SECONDS = 600.0


class ImageVerifier:
    """Verifies images, one answer for all who ask for the same at once, and remembers those that are verified.

    An image that is being verified goes on being so when those who asked have given up: the next one finds it done.
    """

    def __init__(
        self, configuration: Configuration, *, environment: Mapping[str, str] = os.environ, log: Logger | None = None
    ) -> None:
        """`environment` has the variables that cosign and container tools know. Raises InvalidArgument."""
        self._configuration = configuration
        self._log = log or get("sigstore")
        self._http = HttpClient(environment)
        self._keychain = Keychain(configuration.registry_credentials, environment, self._log)
        self._identities = Identities(configuration.allowed_identities)
        self._rekor = Rekor(configuration.rekor_url or PUBLIC_REKOR, self._http)
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="sigstore")
        self._trust = _Trust(environment, configuration, self._log)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._verified: OrderedDict[str, Sequence[str]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Sequence[str]]] = {}

    async def prepare(self) -> None:
        """Get the keys and certificates that are trusted: to be awaited by the attestor's `load`, as its last act.

        Raises ConfigurationError or TemporarilyUnavailable, with which the agent ends, as SPIRE's does.
        """
        await self._trust.get()

    async def verify(self, image_reference: str) -> Sequence[str]:
        """Values of selectors, such as `image-signature:verified`, in SPIRE's order; none for an image to skip.

        `image_reference` is `repository@sha256:…`. Raises InvalidArgument for what is no reference, Refused for an
        image whose signatures do not count, TemporarilyUnavailable when registry or log cannot be asked.
        """
        if image_reference in self._configuration.skipped_images:
            return ()
        reference = Reference.parse(image_reference)
        image = str(reference)
        known = self._verified.get(image)
        if known is not None:
            self._log.debug("Sigstore verifier cache hit", image_id=image)
            self._verified.move_to_end(image)
            return known
        return await asyncio.shield(self._under_way.get(image) or self._begin(image, reference))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _begin(self, image: str, reference: Reference) -> asyncio.Task[Sequence[str]]:
        if len(self._under_way) >= _MOST_WAITING:
            raise TemporarilyUnavailable("too many images are being verified: ask again later")
        self._log.debug("Verifying image with sigstore", image_id=image)
        task = asyncio.get_running_loop().create_task(self._verify(image, reference))
        self._under_way[image] = task
        task.add_done_callback(lambda done: self._ended(image, done))
        return task

    def _ended(self, image: str, task: asyncio.Task[Sequence[str]]) -> None:
        del self._under_way[image]
        if not task.cancelled():
            task.exception()  # those who asked may be gone, and then nobody looks at it

    async def _verify(self, image: str, reference: Reference) -> Sequence[str]:
        async with self._slots:
            try:
                async with asyncio.timeout(IMAGE_SECONDS):
                    return await self._examine(reference)
            except TimeoutError as error:
                reason = f"verifying image {image} took more than {IMAGE_SECONDS:g} s"
                raise TemporarilyUnavailable(reason) from error

    async def _examine(self, reference: Reference) -> Sequence[str]:
        configuration = self._configuration
        policy = judgement.Policy(
            trust=await self._trust.get(),
            identities=self._identities,
            now=datetime.now(UTC),
            require_sct=not configuration.ignore_sct,
            require_log=not configuration.ignore_tlog,
        )
        registry = Registry(reference.repository, self._http, self._keychain)
        rekor = None if configuration.ignore_tlog else self._rekor
        attached = Attached(registry, rekor, policy, self._workers)
        digest = await attached.digest_of(reference)
        signatures = await attached.signatures(digest)
        attested = not configuration.ignore_attestations
        if attested:
            await attached.require_attestation(digest)
        found = selectors_of(signatures, attested=attested, with_log=policy.require_log)
        if attached.complete:
            self._remember(reference, found)
        return found

    def _remember(self, reference: Reference, selectors: Sequence[str]) -> None:
        """What is under a digest stays; what is under a tag may be another image tomorrow."""
        if reference.is_digest:
            self._verified[str(reference)] = selectors
            if len(self._verified) > _MOST_REMEMBERED:
                self._verified.popitem(last=False)


class _Trust:
    """Loaded once and then once a day; while that fails, what was loaded before goes on being trusted."""

    def __init__(self, environment: Mapping[str, str], configuration: Configuration, log: Logger) -> None:
        self._environment = environment
        self._need = trust_files.Need(rekor=not configuration.ignore_tlog, ct=not configuration.ignore_sct)
        self._log = log
        self._lock = asyncio.Lock()
        self._trusted: TrustRoot | None = None
        self._due = 0.0

    async def get(self) -> TrustRoot:
        """Raises ConfigurationError and TemporarilyUnavailable when there never was any."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self._trusted is not None and clock() < self._due:
                return self._trusted
            try:
                self._trusted = await self._load()
                self._due = clock() + _TRUST_SECONDS
            except SpireError as error:
                if self._trusted is None:
                    raise
                self._log.warning("Trust for image signatures cannot be loaded anew", error=error)
                self._due = clock() + _RETRY_SECONDS
            return self._trusted

    async def _load(self) -> TrustRoot:
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                return await asyncio.to_thread(trust_files.load, self._environment, self._need)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"the TUF repository gave no answer within {PREPARE_SECONDS:g} s") from error
