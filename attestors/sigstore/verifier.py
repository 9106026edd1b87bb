"""From a reference to an image to the selectors that its verified signatures give."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

from attestors.sigstore import judgement, trust_files
from attestors.sigstore.attached import Attached
from attestors.sigstore.configuration import Configuration
from attestors.sigstore.credentials import Keychain
from attestors.sigstore.current_trust import CurrentTrust
from attestors.sigstore.identities import Identities
from attestors.sigstore.references import Reference
from attestors.sigstore.registry import Registry
from attestors.sigstore.rekor import PUBLIC_REKOR, Rekor
from attestors.sigstore.remembered import Remembered
from attestors.sigstore.selectors import selectors_of
from operations.errors import Refused, TemporarilyUnavailable
from operations.logs import Logger, get
from transport.web.client import HttpClient

IMAGE_SECONDS: Final = 30.0
"""For all of one image, once it is its turn: registry, log, and the checks."""

_AT_ONCE = 32
_OF_A_REGISTRY = 4
_MOST_WAITING = 1024
_MOST_WAITING_OF_A_REGISTRY = 64
_LARGE_AT_ONCE = 2
_WORKERS = 2


class ImageVerifier:
    """Verifies images, one answer for all who ask for the same at once, and remembers those that are verified.

    An image that is being verified goes on being so when those who asked have given up: the next one finds it done.
    A registry that is slow, or very many images of one, cost the images of that registry only.
    """

    def __init__(
        self, configuration: Configuration, *, environment: Mapping[str, str] = os.environ, log: Logger | None = None
    ) -> None:
        """`environment` has the variables that cosign and container tools know. Raises InvalidArgument."""
        self._configuration = configuration
        self._log = log or get("sigstore")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="sigstore")
        self._http = HttpClient(environment)
        self._keychain = Keychain(configuration.registry_credentials, environment, self._log, self._workers)
        self._identities = Identities(configuration.allowed_identities)
        self._rekor = Rekor(configuration.rekor_url or PUBLIC_REKOR, self._http)
        need = trust_files.Need(rekor=not configuration.ignore_tlog, ct=not configuration.ignore_sct)
        self._trust = CurrentTrust(lambda: trust_files.load(environment, need), self._log)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._registries: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str] = Counter()
        self._under_way: dict[str, asyncio.Task[Sequence[str]]] = {}
        self._known = Remembered()

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
        known = self._known.find(str(reference))
        if known is not None:
            self._log.debug("Sigstore verifier cache hit", image_id=str(reference))
            return known
        return await asyncio.shield(self._under_way.get(str(reference)) or self._begin(reference))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._trust.close()
        self._http.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _begin(self, reference: Reference) -> asyncio.Task[Sequence[str]]:
        registry = reference.repository.registry
        if len(self._under_way) >= _MOST_WAITING or self._waiting[registry] >= _MOST_WAITING_OF_A_REGISTRY:
            raise TemporarilyUnavailable(f"too many images of {registry} are being verified: ask again later")
        self._log.debug("Verifying image with sigstore", image_id=str(reference))
        task = asyncio.get_running_loop().create_task(self._verify(reference))
        self._under_way[str(reference)] = task
        self._waiting[registry] += 1
        self._registries.setdefault(registry, asyncio.Semaphore(_OF_A_REGISTRY))
        task.add_done_callback(lambda done: self._ended(reference, done))
        return task

    def _ended(self, reference: Reference, task: asyncio.Task[Sequence[str]]) -> None:
        registry = reference.repository.registry
        del self._under_way[str(reference)]
        self._waiting[registry] -= 1
        if not self._waiting[registry]:
            del self._waiting[registry], self._registries[registry]
        if not task.cancelled():
            task.exception()  # those who asked may be gone, and then nobody looks at it

    async def _verify(self, reference: Reference) -> Sequence[str]:
        async with self._registries[reference.repository.registry], self._slots:
            try:
                async with asyncio.timeout(IMAGE_SECONDS):
                    return await self._examine(reference)
            except TimeoutError as error:
                reason = f"verifying image {reference} took more than {IMAGE_SECONDS:g} s"
                raise TemporarilyUnavailable(reason) from error
            except Refused as error:
                self._known.refused(str(reference), error)
                raise

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
        attached = Attached(registry, rekor, policy, self._workers, self._large)
        digest = await attached.digest_of(reference)
        signatures = await attached.signatures(digest)
        attested = not configuration.ignore_attestations
        if attested:
            await attached.require_attestation(digest)
        found = selectors_of(signatures, attested=attested, with_log=policy.require_log)
        # What is under a digest stays; what is under a tag may be another image tomorrow.
        if attached.complete and reference.is_digest:
            self._known.verified(str(reference), found)
        return found
