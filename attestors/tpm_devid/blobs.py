"""The blobs of a DevID's key, as SPIRE has them in files: a public area and a private part, without their sizes."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from keystores.tpm import public_area
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, SpireError

_SIZE: Final = 2


def unsized(blob: bytes) -> bytes:
    """The blob without the two bytes of its size, which files of tpm2-tools have."""
    has_size = len(blob) > _SIZE and int.from_bytes(blob[:_SIZE]) == len(blob) - _SIZE
    return blob[_SIZE:] if has_size else blob


def sized(blob: bytes) -> bytes:
    """A TPM2B. Raises InvalidArgument for what is too long for one."""
    if len(blob) > 0xFFFF:
        raise InvalidArgument("it is longer than anything that a TPM makes")
    return len(blob).to_bytes(_SIZE) + blob


def area(public: bytes) -> PublicArea:
    """Read a TPMT_PUBLIC. Raises InvalidArgument, and Unsupported for what is no key of a known kind."""
    return public_area.parse(sized(public))


def signing_key(public: bytes) -> tuple[PublicArea, str]:
    """A DevID's area, and the hash that it signs with. Raises InvalidArgument for a key that cannot be a DevID's."""
    try:
        found = area(public)
    except SpireError as error:
        raise InvalidArgument(f"the public blob is none of a signing key: {error}") from error
    if found.key is None:
        raise InvalidArgument("bad key type: a DevID's key is RSA or ECC")
    if not found.attributes["sign"]:
        raise InvalidArgument("not a signing key")
    if found.scheme is None or not found.scheme.hash:
        raise InvalidArgument("signature hash algorithm is NULL: a DevID's key is made with a scheme and its hash")
    return found, found.scheme.hash


def kind_of(found: PublicArea) -> str:
    """By which the storage key above it is chosen, too."""
    return "rsa-2048" if isinstance(found.key, rsa.RSAPublicKey) else "ec-p256"
