"""Making a DevID: its key in the TPM, a request that an operator's CA signs, and the files for the agent. It blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestors.tpm_devid import blobs
from attestors.tpm_devid.blobs import kind_of
from identity import asn1, unsigned
from identity.unsigned import Algorithm
from keystores.tpm.worker import KINDS
from operations.errors import AlreadyExists, ConfigurationError, InvalidArgument, PermanentlyUnusable
from operations.files import write_atomically
from operations.quoting import quote

if TYPE_CHECKING:
    from attestors.tpm_devid.jobs import Access

PRIVATE, PUBLIC, REQUEST, CERTIFICATE = "devid.priv.blob", "devid.pub.blob", "devid.csr.pem", "devid.crt.pem"
KEY_TYPES: Final = ("ec-p256", "rsa-2048")
_ALGORITHMS: Final = {"ec-p256": Algorithm.ECDSA_SHA256, "rsa-2048": Algorithm.RSA_SHA256}
_HARDWARE_MODULE_NAME: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
_TPM_20: Final = bytes.fromhex("06056781050102")
"""2.23.133.1.2, the type of hardware that a TPM 2.0 is, as DER."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`subject` is as in RFC 4514; the serial number is the machine's, for subject and hardware module name."""

    folder: Path
    key_type: str
    subject: str
    serial_number: str = ""


def provision(wanted: Wanted, access: Access) -> str:
    """Make key, request and files, as far as they are not there. Returns what an operator does next.

    Raises InvalidArgument, AlreadyExists, ConfigurationError, and the errors of keystores.errors.
    """
    if wanted.key_type not in KEY_TYPES:
        raise InvalidArgument(f"-keyType: {quote(wanted.key_type)} is none of {', '.join(KEY_TYPES)}")
    builder = _builder(wanted)
    there = _there(wanted.folder)
    if REQUEST in there:
        _require_same(wanted, builder, there)
    else:
        _make(wanted, builder, access, _key_of(wanted, there))
    return _next_steps(wanted, guarded=bool(access.devid_auth), made=REQUEST not in there)


def _there(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in (PRIVATE, PUBLIC, REQUEST):
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigurationError(f"cannot be read: {error.strerror}", file=str(folder / name)) from error
    if len(found) not in {0, 3} and found.keys() != {PRIVATE, PUBLIC}:
        path = folder / next(iter(found))
        raise AlreadyExists(f"{path} is there without the others of a DevID, and nothing is overwritten: move it away")
    return found


def _require_same(wanted: Wanted, builder: x509.CertificateSigningRequestBuilder, there: dict[str, bytes]) -> None:
    """Raise AlreadyExists unless the files are what is wanted."""
    advice = f"{wanted.folder} has a DevID already, and nothing is overwritten: use another folder"
    try:
        area, _ = blobs.signing_key(blobs.unsized(there[PUBLIC]))
        request = x509.load_pem_x509_csr(there[REQUEST])
        info, _ = unsigned.request(builder, _ALGORITHMS[kind_of(area)], area.der)
        same = kind_of(area) == wanted.key_type and info == request.tbs_certrequest_bytes
    except (InvalidArgument, ValueError) as error:
        raise AlreadyExists(f"{advice} ({error})") from error
    if not same:
        raise AlreadyExists(f"{advice}; its key type, subject or serial number is another one")


def _key_of(wanted: Wanted, there: dict[str, bytes]) -> tuple[bytes, bytes] | None:
    """The key that an earlier run made before it was cut short, or whose request an operator took away."""
    if not there:
        return None
    public = blobs.unsized(there[PUBLIC])
    area, _ = blobs.signing_key(public)
    if kind_of(area) != wanted.key_type:
        raise AlreadyExists(f"{wanted.folder / PUBLIC} is a key of type {kind_of(area)}: say so by -keyType")
    return public, blobs.unsized(there[PRIVATE])


def _make(
    wanted: Wanted,
    builder: x509.CertificateSigningRequestBuilder,
    access: Access,
    key: tuple[bytes, bytes] | None,
) -> None:
    from attestors.tpm_devid import tpm  # loads the library of TPMs, which a refusal need not wait for
    from keystores.tpm.failures import Fault

    algorithm = _ALGORITHMS[wanted.key_type]
    try:
        made = tpm.make(access, wanted.key_type, lambda public: _unsigned(builder, algorithm, public)[0], key)
    except Fault as fault:
        raise KINDS.get(fault.failed.kind, PermanentlyUnusable)(str(fault)) from fault
    info, identifier = _unsigned(builder, algorithm, made.public)
    request = x509.load_der_x509_csr(unsigned.signed(info, identifier, made.signature))
    if not request.is_signature_valid:
        raise PermanentlyUnusable("the TPM's signature of the request does not verify; nothing was written")
    files = {PRIVATE: made.private, PUBLIC: made.public} if key is None else {}
    _write(wanted.folder, files | {REQUEST: request.public_bytes(Encoding.PEM)})


def _builder(wanted: Wanted) -> x509.CertificateSigningRequestBuilder:
    try:
        subject = x509.Name.from_rfc4514_string(wanted.subject)
    except ValueError as error:
        raise InvalidArgument(
            f"-subject: {quote(wanted.subject)} is no name as in CN=node-1,O=Example: {error}"
        ) from error
    if not subject.rdns:
        raise InvalidArgument("-subject is empty: name the node, as in CN=node-1,O=Example")
    if not wanted.serial_number:
        return x509.CertificateSigningRequestBuilder().subject_name(subject)
    try:
        serial = x509.NameAttribute(NameOID.SERIAL_NUMBER, wanted.serial_number)
        number = wanted.serial_number.encode("ascii")
    except ValueError as error:
        raise InvalidArgument(f"-serialNumber: {quote(wanted.serial_number)} is no serial number: {error}") from error
    name = x509.OtherName(
        _HARDWARE_MODULE_NAME, asn1.element(asn1.SEQUENCE, _TPM_20 + asn1.element(asn1.OCTET_STRING, number))
    )
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([*subject.rdns, x509.RelativeDistinguishedName([serial])]))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
    )


def _unsigned(
    builder: x509.CertificateSigningRequestBuilder, algorithm: Algorithm, public: bytes
) -> tuple[bytes, bytes]:
    return unsigned.request(builder, algorithm, blobs.area(public).der)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """The request comes last: where it is, the others are."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content, mode=0o600)
    except OSError as error:
        raise ConfigurationError(f"the DevID's files cannot be written: {error.strerror}", file=str(folder)) from error


def _next_steps(wanted: Wanted, *, guarded: bool, made: bool) -> str:
    folder = wanted.folder.absolute()
    password = (
        '\n        devid_password_file = "..."   # or devid_password, which Go SPIRE knows alone' if guarded else ""
    )
    head = "The DevID's key is made" if made else "The DevID's key is there, and nothing was changed"
    return f"""{head}; {folder}/{REQUEST} asks for its certificate.

1. Have your CA sign the request, for instance:

    openssl x509 -req -in {folder}/{REQUEST} -copy_extensions copy \\
        -CA devid-ca.pem -CAkey devid-ca.key -days 3650 -out {folder}/{CERTIFICATE}

   Intermediate certificates go behind it in the same file.

2. Put this into agent.conf:

NodeAttestor "tpm_devid" {{
    plugin_data {{
        devid_cert_path = "{folder}/{CERTIFICATE}"
        devid_priv_path = "{folder}/{PRIVATE}"
        devid_pub_path  = "{folder}/{PUBLIC}"{password}
    }}
}}
"""
