"""From a reference to an image to the selectors that its verified signatures give."""

from __future__ import annotations

from collections.abc import Sequence

from attestors.sigstore.configuration import Configuration
from operations.errors import Unsupported


class ImageVerifier:
    """Verifies images, one answer for all who ask for the same at once, and remembers those that are verified."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    async def prepare(self) -> None:
        """Get the keys and certificates that are trusted: to be awaited by the attestor's `load`, as its last act.

        Raises ConfigurationError or TemporarilyUnavailable, with which the agent ends, as SPIRE's does.
        """

    async def verify(self, image_reference: str) -> Sequence[str]:
        """Values of selectors, such as `image-signature:verified`, in SPIRE's order; none for an image to skip.

        `image_reference` is `repository@sha256:…`. Raises InvalidArgument for what is no reference, Refused for an
        image whose signatures do not count, TemporarilyUnavailable when registry or log cannot be asked.
        """
        raise Unsupported(f"image {image_reference}: signatures cannot be verified yet")

    async def close(self) -> None:
        """End what is under way."""
