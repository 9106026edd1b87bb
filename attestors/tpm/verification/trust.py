"""Whom an operator trusts to say which endorsement keys are TPMs': CAs, their revocation lists, and hashes of keys."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from attestors.tpm.verification import certificates, revocation
from attestors.tpm.verification.paths import Authorities, basic_constraints, by_subject, is_old_root
from operations import logs
from operations.errors import ConfigurationError, InvalidArgument, Refused
from operations.quoting import quote

MAX_FILES: Final = 1000
MAX_BYTES: Final = 64 << 20
"""Of all files together."""
MAX_CERTIFICATES: Final = 2000
MAX_LISTS: Final = 64

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_CERTIFICATE_LABELS: Final = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})


@dataclass(frozen=True, slots=True)
class Trust:
    """`anchors` and `crls` are DER. `hashes` are hex SHA-256 of endorsement keys' DER SubjectPublicKeyInfo."""

    anchors: tuple[bytes, ...]
    crls: tuple[bytes, ...]
    hashes: frozenset[str] = field(repr=False)


@lru_cache(maxsize=4)
def authorities(anchors: tuple[bytes, ...], crls: tuple[bytes, ...]) -> Authorities:
    """Anchors by subject, parsed once for all attestations. Raises InvalidArgument."""
    parsed = [certificates.authority(anchor) for anchor in anchors]
    return Authorities(by_subject(parsed), tuple(revocation.parse(crl) for crl in crls))


def load(ca_path: str, hash_path: str) -> Trust:
    """Read a file or folder of CAs and revocation lists (PEM or DER), and a file of hashes; either may be empty.

    Blocks. Raises ConfigurationError for what cannot be read, and for a path with nothing in it.
    """
    anchors, crls = _read_authorities(Path(ca_path)) if ca_path else ((), ())
    hashes = _read_hashes(hash_path) if hash_path else frozenset[str]()
    if not ca_path and not hash_path:
        logs.get("tpm").warning(
            "Neither endorsement_ca_path nor endorsement_hash_path is set: every TPM is going to be refused"
        )
    return Trust(anchors, crls, hashes)


def load_signers(path: str) -> Trust:
    """As `load`, of those who sign something else than certificates of keys, and need not be CAs."""
    anchors, crls = _read_authorities(Path(path), only_authorities=False)
    return Trust(anchors, crls, frozenset())


def _read_authorities(path: Path, *, only_authorities: bool = True) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    anchors: dict[bytes, None] = {}
    crls: dict[bytes, None] = {}
    size = 0
    for file in _files(path):
        content = _read(file)
        size += len(content)
        if size > MAX_BYTES:
            raise ConfigurationError(f"more than {MAX_BYTES} bytes of certificates and lists", file=str(path))
        for line, der, is_list in _parts(content, file):
            try:
                _require_usable(der, is_list=is_list, only_authorities=only_authorities)
            except InvalidArgument as error:
                what = "revocation list" if is_list else "certificate"
                raise ConfigurationError(f"cannot be read as a {what}: {error}", file=str(file), line=line) from error
            except Refused as error:
                raise ConfigurationError(str(error), file=str(file), line=line) from error
            (crls if is_list else anchors)[der] = None
    if not anchors:
        raise ConfigurationError("no CA certificate is there; give manufacturers' roots or CAs", file=str(path))
    if len(anchors) > MAX_CERTIFICATES or len(crls) > MAX_LISTS:
        raise ConfigurationError(
            f"{len(anchors)} certificates and {len(crls)} revocation lists; "
            f"at most {MAX_CERTIFICATES} and {MAX_LISTS} are taken",
            file=str(path),
        )
    return tuple(anchors), tuple(crls)


def _files(path: Path) -> list[Path]:
    """The file, or those in the folder whose names begin with no dot."""
    try:
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.iterdir() if not file.name.startswith(".") and not file.is_dir())
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", file=str(path)) from error
    if len(found) > MAX_FILES:
        raise ConfigurationError(f"{len(found)} files; at most {MAX_FILES} are read", file=str(path))
    return found


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", file=str(file)) from error
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"longer than {MAX_BYTES} bytes", file=str(file))
    return content


def _parts(content: bytes, file: Path) -> Iterator[tuple[int | None, bytes, bool]]:
    """Each certificate and revocation list: line, DER, and which of them it is. Raises ConfigurationError."""
    if b"-----BEGIN " not in content:
        if not content.startswith(b"\x30"):
            raise ConfigurationError("neither a certificate nor a revocation list, in PEM or DER", file=str(file))
        yield None, content, _is_list(content)
        return
    blocks = list(_BLOCK.finditer(content))
    if len(blocks) != content.count(b"-----BEGIN "):
        raise ConfigurationError("a PEM block does not end, or ends as another one", file=str(file))
    for block in blocks:
        label, line = block[1], content.count(b"\n", 0, block.start()) + 1
        if label not in _CERTIFICATE_LABELS and label != b"X509 CRL":
            raise ConfigurationError(
                f"{label.decode()} is neither a certificate nor a revocation list", file=str(file), line=line
            )
        try:
            yield line, base64.b64decode(b"".join(block[2].split()), validate=True), label == b"X509 CRL"
        except binascii.Error as error:
            raise ConfigurationError("the PEM block is no base64", file=str(file), line=line) from error


def _is_list(der: bytes) -> bool:
    try:
        revocation.parse(der)
    except InvalidArgument:
        return False
    return True


def _require_usable(der: bytes, *, is_list: bool, only_authorities: bool) -> None:
    """Raise Refused for a certificate that cannot be an anchor, so that it is not found missing later."""
    if is_list:
        revocation.parse(der)
        return
    certificate = certificates.authority(der)
    is_ca, _ = basic_constraints(certificate)
    if only_authorities and not is_ca and not is_old_root(certificate):
        raise Refused(
            f"the certificate {certificate.label} is no CA's; to trust one endorsement key put its hash into the file "
            "of endorsement_hash_path"
        )
    if certificate.key is None:
        raise Refused(f"the CA {certificate.label} has a key that is neither RSA nor of P-256, P-384 or P-521")


def _read_hashes(path: str) -> frozenset[str]:
    hashes: set[str] = set()
    for number, line in enumerate(_read(Path(path)).decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not _HASH.fullmatch(text.lower()):
            raise ConfigurationError(
                f"{quote(text[:80])} is no SHA-256 of an endorsement key; give one a line, in 64 hex digits",
                file=path,
                line=number,
            )
        hashes.add(text.lower())
    return frozenset(hashes)
