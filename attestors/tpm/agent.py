"""The agent half of NodeAttestor "tpm": the TPM's endorsement and attestation keys, quotes, and the machine's logs.

The TPM has one owner in a process. Where the agent's KeyManager is in the same TPM that is the key manager's worker,
which has the SVID's key besides, so that the TPM can certify it; else it is a worker of the attestor's own.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from attestors.tpm import choice, measurements, platform_files
from attestors.tpm.choice import Choice
from attestors.tpm.measurements import Measurements, Places
from attestors.tpm.messages import (
    CERTIFICATES,
    PART_LIMIT,
    PROOF_LIMIT,
    Activate,
    Ask,
    Certification,
    Hello,
    Part,
    Proof,
    decode,
    encode,
)
from attestors.tpm.pcrs import BANKS, COUNT
from keystores.tpm import configuration as settings
from keystores.tpm import public_area
from keystores.tpm.authorizations import Authorization
from keystores.tpm.manager import TpmKey, TpmKeyManager
from keystores.tpm.messages import Attest, Attested, Blob, Endorse, Endorsed, Place
from keystores.tpm.worker import PATIENCE, Patience, Worker
from operations.errors import ConfigurationError, InvalidArgument
from operations.logs import Logger
from plugins.keymanager import Key, KeyManager
from plugins.nodeattestor import AgentNodeAttestor, Attestation

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME: Final = "tpm"
SHORTEST_INTERVAL: Final = timedelta(seconds=1)


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tcti` is any TCTI string. `reattest_interval` is besides every renewal; 0 for at renewals alone.

    `ek` is the kind of endorsement key; auto takes RSA if that has a certificate, else ECC if that has one, else RSA,
    and stays with it. `event_log_path` and `ima_path` are for logs that are not where kernels have them.
    `platform_certificate_path` is a file or folder of attribute certificates, DER or PEM. The authorizations are those
    of hierarchies that have one.
    """

    tcti: str = settings.DEFAULT_TCTI
    reattest_interval: timedelta = timedelta(minutes=10)
    ek: Literal["auto", "rsa", "ecc"] = "auto"
    event_log_path: str = ""
    ima_path: str = ""
    platform_certificate_path: str = ""
    owner_auth_file: str | None = None
    owner_auth_credential: str | None = None
    endorsement_auth_file: str | None = None
    endorsement_auth_credential: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.reattest_interval and self.reattest_interval < SHORTEST_INTERVAL:
            raise InvalidArgument("reattest_interval: 1s or longer; 0 attests at the SVID's renewals alone")

    @property
    def places(self) -> Places:
        return Places(self.event_log_path, self.ima_path)


class TpmAttestor:
    """An `AgentNodeAttestor`, which is `KeyAttesting` and `Reattesting` besides."""

    name = NAME

    def __init__(
        self,
        configuration: Configuration,
        place: Place,
        endorsement_auth: bytes,
        path: Path | None,
        log: Logger,
        patience: Patience = PATIENCE,
    ) -> None:
        """`path` is where the choice of the endorsement key and the attestation key are kept; None keeps none."""
        self._configuration = configuration
        self._place = place
        self._auth = endorsement_auth
        self._path = path
        self._log = log
        self._patience = patience
        self._own: Worker | None = None
        self.interval: Final = configuration.reattest_interval.total_seconds()

    async def begin(self) -> Attestation:
        """Raises the errors of keystores.errors for what the TPM refuses or lacks; all say what to do."""
        return await self._begun(self.own_worker(), None)

    async def begin_with(self, keys: KeyManager, key: Key) -> Attestation:
        """As `begin`. The key is certified where it is in the same TPM."""
        if isinstance(keys, TpmKeyManager) and keys.worker.place.tcti == self._place.tcti:
            return await self._begun(keys.worker, key.blob if isinstance(key, TpmKey) else None)
        return await self.begin()

    async def close(self) -> None:
        if self._own is not None:
            await self._own.close()

    def own_worker(self) -> Worker:
        """For a TPM that the key manager does not have."""
        if self._own is None:
            self._own = Worker(self._place, self._patience)
        return self._own

    async def _begun(self, worker: Worker, subject: Blob | None) -> Conversation:
        endorsed = await self.endorsed(worker)
        platform = await asyncio.to_thread(platform_files.read, self._configuration.platform_certificate_path)
        hello = Hello(
            ek_public=endorsed.public,
            ak_public=endorsed.key.public,
            ek_certificates=tuple(endorsed.certificates[:CERTIFICATES]),
            platform_certificates=platform,
        )
        return Conversation(encode(hello), self, worker, endorsed, subject)

    async def endorsed(self, worker: Worker | None = None) -> Endorsed:
        """The endorsement key that was chosen once, and an attestation key below it."""
        setting = self._configuration.ek
        kept = None if self._path is None else await asyncio.to_thread(choice.read, self._path)
        chosen = kept if kept is not None and kept.setting == setting else None
        request = Endorse(
            algorithm=setting,
            template="" if chosen is None else chosen.template,
            auth=self._auth,
            key=None if kept is None else kept.key,
        )
        endorsed = await (worker or self.own_worker()).call(request, Endorsed, creation=True)
        found = Choice.of(setting, endorsed)
        if self._path is not None and found != kept:
            await asyncio.to_thread(choice.write, self._path, found)
            self._log.info(
                "Made an attestation key",
                endorsement_key=endorsed.template,
                endorsement_hash=hashlib.sha256(public_area.parse(endorsed.public).der).hexdigest(),
                certificates=len(endorsed.certificates),
                path=str(self._path),
            )
        return endorsed

    async def attested(self, asked: Activate, endorsed: Endorsed, worker: Worker, subject: Blob | None) -> Attested:
        """The TPM's part of a proof; also without a credential to activate."""
        key = Blob(public=endorsed.key.public, private=endorsed.key.private)
        request = Attest(
            template=endorsed.template,
            auth=self._auth,
            key=key,
            nonce=asked.nonce,
            bank=asked.bank,
            pcrs=asked.pcrs,
            credential=asked.credential,
            secret=asked.secret,
            subject=subject,
        )
        return await worker.call(request, Attested, creation=True)

    async def evidence(self, asked: Activate, endorsed: Endorsed) -> tuple[Attested, Measurements]:
        """A quote without a server that asks for it, and the logs after it."""
        attested = await self.attested(asked, endorsed, self.own_worker(), None)
        return attested, await self.measured()

    async def measured(self) -> Measurements:
        return await asyncio.to_thread(measurements.take, self._configuration.places, self._log)


class Conversation:
    """One attestation: first the proof, then parts of the logs as they were after it."""

    def __init__(
        self, payload: bytes, attestor: TpmAttestor, worker: Worker, endorsed: Endorsed, subject: Blob | None
    ) -> None:
        self.payload: Final = payload
        self._attestor = attestor
        self._worker = worker
        self._endorsed = endorsed
        self._subject = subject
        self._measured: Measurements | None = None

    async def respond(self, challenge: bytes) -> bytes:
        """Raises InvalidArgument for what no server should ask, and as `TpmAttestor.begin`."""
        if self._measured is None:
            return await self._prove(decode(Activate, challenge, PROOF_LIMIT))
        asked = decode(Ask, challenge, PROOF_LIMIT)
        return encode(Part(data=await self._part(self._measured, asked)))

    async def _prove(self, asked: Activate) -> bytes:
        if asked.bank not in BANKS or not set(asked.pcrs) <= set(range(COUNT)):
            raise InvalidArgument(f"the server asks for registers that no TPM has: {asked.bank}:{asked.pcrs}")
        attested = await self._attestor.attested(asked, self._endorsed, self._worker, self._subject)
        measured = self._measured = await self._attestor.measured()
        certification = None
        if attested.certified is not None and self._subject is not None:
            certification = Certification(
                statement=attested.certified.statement,
                signature=attested.certified.signature,
                public=self._subject.public,
            )
        return encode(
            Proof(
                secret=attested.secret,
                quote=attested.quote,
                signature=attested.signature,
                pcrs=attested.pcrs,
                certification=certification,
                event_log_size=len(measured.event_log),
                event_log_hash=hashlib.sha256(measured.event_log).digest() if measured.event_log else b"",
                ima_size=measured.ima_size,
            )
        )

    @staticmethod
    async def _part(measured: Measurements, asked: Ask) -> bytes:
        if asked.offset < 0 or not 0 < asked.size <= PART_LIMIT:
            raise InvalidArgument(f"the server asks for {asked.size} bytes at {asked.offset} of a log")
        if asked.log == "event_log":
            return measured.event_log[asked.offset : asked.offset + asked.size]
        return await asyncio.to_thread(measured.ima, asked.offset, asked.size)


async def load(configuration: Configuration, context: PluginContext) -> AgentNodeAttestor:
    """Raises ConfigurationError for settings and files that cannot be used; the TPM is asked at the attestation."""
    if context.data_dir is None:
        raise ConfigurationError("tpm: data_dir is needed, to keep the choice of the endorsement key")
    return await opened(configuration, Path(context.data_dir) / choice.FILE, context.log)


async def opened(configuration: Configuration, path: Path | None, log: Logger) -> TpmAttestor:
    """As `load`. `path` is where the choice is kept, None to keep none."""
    given = configuration
    owner = Authorization.configured("owner_auth", given.owner_auth_file, given.owner_auth_credential)
    endorsement = Authorization.configured(
        "endorsement_auth", given.endorsement_auth_file, given.endorsement_auth_credential
    )
    place = Place(tcti=settings.tcti(given.tcti), owner_auth=await asyncio.to_thread(owner.read))
    auth = await asyncio.to_thread(endorsement.read)
    await asyncio.to_thread(given.places.check)
    await asyncio.to_thread(platform_files.read, given.platform_certificate_path)
    return TpmAttestor(given, place, auth, path, log)
