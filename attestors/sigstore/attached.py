"""The signatures and attestations that a repository has of an image: fetched one by one, judged, counted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from attestors.sigstore import judgement
from attestors.sigstore.judgement import Policy, Signature
from attestors.sigstore.layers import Layer, layers_of
from attestors.sigstore.references import Reference
from attestors.sigstore.registry import Registry
from attestors.sigstore.rekor import Rekor
from operations.errors import NotFound, Refused, SpireError, TemporarilyUnavailable

SIGNATURE_BYTES: Final = 1 << 20
ATTESTATION_BYTES: Final = 32 << 20
TOTAL_BYTES: Final = 128 << 20
"""What is read at most: of one signed payload, of one attestation, of all payloads of an image."""

_SMALL = 1 << 20
_LARGE_SECONDS = 20.0
_MOST_ASKED = 8
"""How often the log is asked for one image: cosign puts entries beside signatures since long."""
_MOST_REASONS = 3
_LONGEST_REASON = 300

T = TypeVar("T")
_Judge = Callable[[Signature, str, Policy], None]


class Attached:
    """For one image. Without a log to ask, entries have to come along, or are not wanted.

    `complete` is false once something could not be asked: another time there may be more.
    """

    def __init__(
        self, registry: Registry, rekor: Rekor | None, policy: Policy, workers: Executor, large: asyncio.Semaphore
    ) -> None:
        """What takes long is done by `workers`; `large` is held while there is a large payload in memory."""
        self._registry = registry
        self._rekor = rekor
        self._policy = policy
        self._workers = workers
        self._large = large
        self._read = 0
        self._asked = 0
        self._last = ("", b"")
        self.complete = True

    async def digest_of(self, reference: Reference) -> str:
        """A tag is looked up. Raises as `signatures` does."""
        if reference.is_digest:
            return reference.identifier
        try:
            manifest = await self._registry.manifest(reference.identifier)
        except NotFound as error:
            raise Refused(f"image tag not found: {error}") from error
        return f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    async def signatures(self, digest: str) -> list[Signature]:
        """All that count, at least one. Raises Refused, TemporarilyUnavailable."""
        what = "failed to verify signatures"
        layers = await self._layers(digest, "sig", what)
        if not layers:
            raise Refused(f"{what}: no signatures found")
        found, faults = await self._judged(layers, digest, judgement.judge_signature, SIGNATURE_BYTES)
        if not found:
            raise _no_match(f"{what}: no matching signatures", faults)
        return found

    async def require_attestation(self, digest: str) -> None:
        """One that counts will do. Raises Refused, TemporarilyUnavailable."""
        what = "failed to verify image attestations"
        layers = await self._layers(digest, "att", what)
        found, faults = await self._judged(
            layers, digest, judgement.judge_attestation, ATTESTATION_BYTES, first_only=True
        )
        if not found:
            raise _no_match(f"{what}: no matching attestations", faults)

    async def _layers(self, digest: str, suffix: str, what: str) -> list[Layer]:
        try:
            manifest = await self._registry.manifest(f"{digest.replace(':', '-')}.{suffix}")
            return await self._run(lambda: layers_of(manifest))
        except NotFound:
            return []
        except (Refused, TemporarilyUnavailable) as error:
            raise type(error)(f"{what}: {error}") from error

    async def _judged(
        self, layers: list[Layer], digest: str, judge: _Judge, largest: int, *, first_only: bool = False
    ) -> tuple[list[Signature], list[SpireError]]:
        found: list[Signature] = []
        faults: list[SpireError] = []
        for layer in layers:
            try:
                found.append(await self._one(layer, digest, judge, largest))
            except (Refused, NotFound) as error:
                faults.append(error)
            except TemporarilyUnavailable as error:
                faults.append(error)
                self.complete = False
            if found and first_only:
                break
        return found, faults

    async def _one(self, layer: Layer, digest: str, judge: _Judge, largest: int) -> Signature:
        if not 0 <= layer.size <= largest:
            raise Refused(f"size of layer ({layer.size}) exceeded the limit ({largest})")
        if layer.size <= _SMALL:
            return await self._judge(layer, await self._small(layer), digest, judge)
        try:
            async with self._large, asyncio.timeout(_LARGE_SECONDS):
                return await self._judge(layer, await self._fetch(layer), digest, judge)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"a large payload took more than {_LARGE_SECONDS:g} s") from error

    async def _judge(self, layer: Layer, payload: bytes, digest: str, judge: _Judge) -> Signature:
        signature = await self._run(lambda: judgement.read(layer, payload))
        if signature.logged is None and self._rekor is not None:
            self._policy.identities.require(signature.certificate)
            self._asked += 1
            if self._asked > _MOST_ASKED:
                raise Refused("too many signatures have no log entry beside them")
            signature = judgement.found_in_log(signature, await self._rekor.find(signature, self._policy.trust))
        await self._run(lambda: judge(signature, digest, self._policy))
        return signature

    async def _small(self, layer: Layer) -> bytes:
        """Whoever signs the same image again signs the same payload."""
        if layer.digest != self._last[0]:
            self._last = (layer.digest, await self._fetch(layer))
        return self._last[1]

    async def _fetch(self, layer: Layer) -> bytes:
        self._read += layer.size
        if self._read > TOTAL_BYTES:
            raise Refused(f"the payloads of an image exceeded the limit ({TOTAL_BYTES} bytes)")
        return await self._registry.blob(layer.digest, layer.size)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _no_match(what: str, faults: list[SpireError]) -> SpireError:
    """Told apart: what may be better another time."""
    reasons = list(dict.fromkeys(str(fault)[:_LONGEST_REASON] for fault in faults))
    text = "; ".join(reasons[:_MOST_REASONS])
    more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    kind = TemporarilyUnavailable if any(isinstance(fault, TemporarilyUnavailable) for fault in faults) else Refused
    return kind(f"{what}: {text}{more}" if text else what)
