"""The server half of tpm_devid: a node is who its DevID's certificate says, if the DevID's key is in a TPM."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from attestors import anchors
from attestors.tpm_devid import messages, verification
from attestors.tpm_devid.messages import AttestationRequest, ChallengeResponse
from attestors.tpm_devid.verification import Trust, Verdict
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote
from plugins.nodeattestor import AttestedNode, Challenge

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "tpm_devid"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files: the CAs of DevIDs, and those of TPMs' manufacturers, of which the one that signs certificates of
    endorsement keys has to be there itself."""

    devid_ca_path: str = ""
    endorsement_ca_path: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for key in ("devid_ca_path", "endorsement_ca_path"):
            if not getattr(self, key):
                raise InvalidArgument(f"{key} is required")

    def check_files(self) -> None:
        """Raises ConfigurationError for CA files that cannot be used."""
        self.trust()

    def trust(self) -> Trust:
        """As above."""
        return Trust(
            devid=_read(self.devid_ca_path, "DevID"), endorsement=_read(self.endorsement_ca_path, "endorsement")
        )


def _read(path: str, what: str) -> tuple[bytes, ...]:
    complaint = f"unable to load {what} trust bundle"
    try:
        return tuple(dict.fromkeys(anchors.read(path)))
    except OSError as error:
        raise ConfigurationError(f"{complaint}: open {path}: {error.strerror}") from error
    except InvalidArgument as error:
        raise ConfigurationError(f"{complaint}: {quote(path)}: {error}") from error


class TpmDevIdAttestor:
    name = NAME

    def __init__(self, trust: Trust, trust_domain: str) -> None:
        self._trust = trust
        self._trust_domain = TrustDomain(trust_domain)

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """`payload` is messages.AttestationRequest. Raises InvalidArgument."""
        verdict = await asyncio.to_thread(self._verify, payload, datetime.now(UTC))
        answer = await challenge(messages.encode(verdict.challenge))
        try:
            response = messages.decode(ChallengeResponse, answer, messages.ANSWER_LIMIT)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshall challenges response: {error}") from error
        verification.prove(verdict, response)  # one signature: quicker than a thread
        return AttestedNode(
            f"spiffe://{self._trust_domain.name}/spire/agent/{NAME}/{verification.fingerprint(verdict.leaf)}",
            [Selector(NAME, value) for value in verification.selector_values(verdict)],
            can_reattest=True,
        )

    def _verify(self, payload: bytes, now: datetime) -> Verdict:
        if not payload:
            raise InvalidArgument("missing attestation payload")
        try:
            request = messages.decode(AttestationRequest, payload, messages.REQUEST_LIMIT)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshall attestation data: {error}") from error
        return verification.verify(request, self._trust, now)


async def load(configuration: Configuration, context: PluginContext) -> TpmDevIdAttestor:
    """Raises ConfigurationError for CA files that cannot be used."""
    return TpmDevIdAttestor(await asyncio.to_thread(configuration.trust), context.trust_domain)
