"""A repository of images with signatures, a Sigstore that made them, and verifiers that are pointed at both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from attestors.sigstore.configuration import Configuration
from attestors.sigstore.verifier import ImageVerifier
from tests.simulators.registry import Registry, WebServer
from tests.simulators.sigstore import BUNDLE, ISSUER, SIGNATURE, SUBJECT, Attachment, Sigstore

ALLOWED: Mapping[str, tuple[str, ...]] = {ISSUER: (SUBJECT,)}
SIGNATURES_ONLY = Configuration(allowed_identities=ALLOWED, ignore_attestations=True)
WITH_ATTESTATIONS = Configuration(allowed_identities=ALLOWED)
ANYBODY = Configuration(ignore_attestations=True)


@dataclass
class House:
    sigstore: Sigstore
    registry: Registry
    server: WebServer
    environment: dict[str, str]
    verifiers: list[ImageVerifier]

    def verifier(self, configuration: Configuration = SIGNATURES_ONLY) -> ImageVerifier:
        made = ImageVerifier(configuration, environment=self.environment)
        self.verifiers.append(made)
        return made

    def image(self, digest: str) -> str:
        return f"{self.server.host}/app@{digest}"

    def details(self, signature: Attachment, subject: str = SUBJECT, issuer: str = ISSUER) -> list[str]:
        """The selectors that a signature gives, in their order."""
        bundle = json.loads(signature.annotations[BUNDLE])
        return [
            f"image-signature-subject:{subject}",
            f"image-signature-issuer:{issuer}",
            f"image-signature-value:{signature.annotations[SIGNATURE]}",
            f"image-signature-log-id:{self.sigstore.log.id}",
            f"image-signature-log-index:{bundle['Payload']['logIndex']}",
            f"image-signature-integrated-time:{bundle['Payload']['integratedTime']}",
            f"image-signature-signed-entry-timestamp:{bundle['SignedEntryTimestamp']}",
        ]
