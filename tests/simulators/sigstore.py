"""Sigstore of our own: a CA like Fulcio with its CT log, a log like Rekor, and what cosign signs with them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SUBJECT = "https://github.com/example/app/.github/workflows/release.yaml@refs/tags/v1.0.0"
ISSUER = "https://token.actions.githubusercontent.com"
NOW = datetime.now(UTC).replace(microsecond=0)
MINUTE = timedelta(minutes=1)

_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER_V1 = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")

PrivateKey = ec.EllipticCurvePrivateKey
Annotations = dict[str, str]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem(*certificates: x509.Certificate) -> str:
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: PrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


@dataclass
class Identity:
    """Who asks for a certificate, when, and what of it is unusual."""

    subject: str = SUBJECT
    issuer: str = ISSUER
    issuer_v2: str | None = None
    at: datetime = NOW
    lifetime: timedelta = 10 * MINUTE
    names: Sequence[x509.GeneralName] | None = None
    usage: ObjectIdentifier | None = ExtendedKeyUsageOID.CODE_SIGNING
    scts: int = 1
    ct_key: PrivateKey | None = None


@dataclass
class Signer:
    key: PrivateKey
    certificate: x509.Certificate


@dataclass
class Attachment:
    """A layer: its payload and cosign's annotations."""

    payload: bytes
    annotations: Annotations
    media_type: str = "application/vnd.dev.cosign.simplesigning.v1+json"

    def without(self, name: str) -> Attachment:
        return replace(self, annotations={key: value for key, value in self.annotations.items() if key != name})

    def having(self, name: str, value: str) -> Attachment:
        return replace(self, annotations={**self.annotations, name: value})


SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
BUNDLE = "dev.sigstore.cosign/bundle"


@dataclass
class Log:
    """Rekor: entries are leaves of a tree, whose head is not signed here."""

    key: PrivateKey = field(default_factory=new_key)
    bodies: list[bytes] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    @property
    def id(self) -> str:
        return hashlib.sha256(spki(self.key)).hexdigest()

    def add(self, body: Mapping[str, object], at: datetime) -> int:
        self.bodies.append(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())
        self.times.append(int(at.timestamp()))
        return len(self.bodies) - 1

    def entry(self, index: int) -> dict[str, Any]:
        return {
            "body": b64(self.bodies[index]),
            "integratedTime": self.times[index],
            "logIndex": index,
            "logID": self.id,
        }

    def promise(self, entry: Mapping[str, object]) -> str:
        return b64(sign(self.key, json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()))

    def bundle(self, index: int) -> str:
        entry = self.entry(index)
        return json.dumps({"SignedEntryTimestamp": self.promise(entry), "Payload": entry})

    def answer(self, index: int) -> dict[str, Any]:
        """What a search finds."""
        entry = self.entry(index)
        leaves = [_leaf(body) for body in self.bodies]
        proof = {
            "hashes": [each.hex() for each in _path(index, leaves)],
            "logIndex": index,
            "rootHash": _tree(leaves).hex(),
            "treeSize": len(leaves),
            "checkpoint": "",
        }
        verification = {"signedEntryTimestamp": self.promise(entry), "inclusionProof": proof}
        return {f"{7:016x}{leaves[index].hex()}": {**entry, "verification": verification}}


def _leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\0" + body).digest()


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _tree(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return hashlib.sha256(b"\1" + _tree(leaves[:middle]) + _tree(leaves[middle:])).digest()


def _path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*_path(index, leaves[:middle]), _tree(leaves[middle:])]
    return [*_path(index - middle, leaves[middle:]), _tree(leaves[:middle])]


class Sigstore:
    def __init__(self, *, begun: datetime = NOW - timedelta(days=30)) -> None:
        self.root_key, self.ca_key, self.ct_key = new_key(), new_key(), new_key()
        self.root = _authority("sigstore", self.root_key, "sigstore", self.root_key, begun)
        self.ca = _authority("sigstore-intermediate", self.ca_key, "sigstore", self.root_key, begun)
        self.log = Log()

    def environment(self, folder: Path) -> dict[str, str]:
        """What points programs here, and keeps them from everything else."""
        folder.mkdir(exist_ok=True)
        files = {
            "SIGSTORE_ROOT_FILE": pem(self.ca, self.root).encode(),
            "SIGSTORE_REKOR_PUBLIC_KEY": public_pem(self.log.key),
            "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE": public_pem(self.ct_key),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return {"HOME": str(folder), **{name: str(folder / name) for name in files}}

    def signer(self, identity: Identity | None = None, *, issuer: tuple[x509.Name, PrivateKey] | None = None) -> Signer:
        identity = identity or Identity()
        name, key = issuer or (self.ca.subject, self.ca_key)
        own = new_key()
        plain = _leaf_builder(identity, own, name, key).sign(key, hashes.SHA256())
        timestamps = [self._sct(identity, plain, key) for _ in range(identity.scts)]
        if not timestamps:
            return Signer(own, plain)
        listed = b"".join(len(each).to_bytes(2) + each for each in timestamps)
        value = _octets(len(listed).to_bytes(2) + listed)
        builder = _leaf_builder(identity, own, name, key, plain.serial_number)
        builder = builder.add_extension(x509.UnrecognizedExtension(_SCT_LIST, value), critical=False)
        return Signer(own, builder.sign(key, hashes.SHA256()))

    def _sct(self, identity: Identity, certificate: x509.Certificate, issuer_key: PrivateKey) -> bytes:
        """RFC 6962, 3.2 and 3.3."""
        time = int(identity.at.timestamp() * 1000).to_bytes(8)
        body = certificate.tbs_certificate_bytes
        signed = b"".join((
            b"\0\0",
            time,
            b"\0\1",
            hashlib.sha256(spki(issuer_key)).digest(),
            len(body).to_bytes(3),
            body,
            b"\0\0",
        ))  # fmt: skip
        signature = sign(identity.ct_key or self.ct_key, signed)
        name = hashlib.sha256(spki(self.ct_key)).digest()
        return b"\0" + name + time + b"\0\0" + b"\4\3" + len(signature).to_bytes(2) + signature

    def signature(
        self, image_digest: str, signer: Signer | None = None, *, at: datetime = NOW + MINUTE, repository: str = "app"
    ) -> Attachment:
        """What `cosign sign` attaches."""
        signer = signer or self.signer()
        payload = json.dumps({
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": image_digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }).encode()  # fmt: skip
        return self.signed(payload, signer, at)

    def signed(self, payload: bytes, signer: Signer, at: datetime = NOW + MINUTE) -> Attachment:
        signature = b64(sign(signer.key, payload))
        entry = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}},
                "signature": {"content": signature, "publicKey": {"content": b64(pem(signer.certificate).encode())}},
            },
        }
        return Attachment(payload, self._annotations(signature, signer, self.log.add(entry, at)))

    def attestation(
        self, image_digest: str, signer: Signer | None = None, *, at: datetime = NOW + MINUTE, kind: str = "dsse"
    ) -> Attachment:
        """What `cosign attest` attaches. `kind` is the log entry's: dsse, intoto 0.0.1 or intoto 0.0.2."""
        signer = signer or self.signer()
        algorithm, _, digest = image_digest.partition(":")
        statement = json.dumps({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "app", "digest": {algorithm: digest}}],
            "predicate": {},
        }).encode()  # fmt: skip
        return self.attested(statement, signer, at, kind)

    def attested(self, statement: bytes, signer: Signer, at: datetime = NOW + MINUTE, kind: str = "dsse") -> Attachment:
        payload_type = "application/vnd.in-toto+json"
        signed = f"DSSEv1 {len(payload_type)} {payload_type} {len(statement)} ".encode() + statement
        signature = b64(sign(signer.key, signed))
        envelope = json.dumps({
            "payloadType": payload_type,
            "payload": b64(statement),
            "signatures": [{"keyid": "", "sig": signature}],
        }).encode()  # fmt: skip
        digest = {"algorithm": "sha256", "value": hashlib.sha256(envelope).hexdigest()}
        key = b64(pem(signer.certificate).encode())
        entry = _ENTRIES[kind](digest, key, signature)
        annotations = self._annotations("", signer, self.log.add(entry, at))
        return Attachment(envelope, annotations, "application/vnd.dsse.envelope.v1+json")

    def _annotations(self, signature: str, signer: Signer, index: int) -> Annotations:
        return {
            SIGNATURE: signature,
            CERTIFICATE: pem(signer.certificate),
            CHAIN: pem(self.ca, self.root),
            BUNDLE: self.log.bundle(index),
        }


def _dsse(digest: Mapping[str, str], key: str, signature: str) -> dict[str, object]:
    spec = {"envelopeHash": digest, "payloadHash": digest, "signatures": [{"signature": signature, "verifier": key}]}
    return {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}


def _intoto_1(digest: Mapping[str, str], key: str, signature: str) -> dict[str, object]:
    del signature
    spec = {"content": {"hash": digest, "payloadHash": digest}, "publicKey": key}
    return {"apiVersion": "0.0.1", "kind": "intoto", "spec": spec}


def _intoto_2(digest: Mapping[str, str], key: str, signature: str) -> dict[str, object]:
    signatures = [{"sig": b64(signature.encode()), "publicKey": key}]
    envelope = {"payloadType": "application/vnd.in-toto+json", "signatures": signatures}
    spec = {"content": {"envelope": envelope, "hash": digest, "payloadHash": digest}}
    return {"apiVersion": "0.0.2", "kind": "intoto", "spec": spec}


_ENTRIES = {"dsse": _dsse, "intoto 0.0.1": _intoto_1, "intoto 0.0.2": _intoto_2}


def _name(text: str) -> x509.Name:
    attributes = [(NameOID.ORGANIZATION_NAME, "sigstore.dev"), (NameOID.COMMON_NAME, text)]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def _authority(name: str, key: PrivateKey, issuer: str, issuer_key: PrivateKey, begun: datetime) -> x509.Certificate:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(begun + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if name != issuer else 1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if name != issuer:
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _leaf_builder(
    identity: Identity, key: PrivateKey, issuer: x509.Name, issuer_key: PrivateKey, serial: int | None = None
) -> x509.CertificateBuilder:
    names = identity.names
    if names is None:
        made = x509.RFC822Name if "://" not in identity.subject else x509.UniformResourceIdentifier
        names = [made(identity.subject)] if identity.subject else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(identity.at)
        .not_valid_after(identity.at + identity.lifetime)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if identity.usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([identity.usage]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if identity.issuer:
        value = identity.issuer.encode()
        builder = builder.add_extension(x509.UnrecognizedExtension(_ISSUER_V1, value), critical=False)
    second = identity.issuer if identity.issuer_v2 is None else identity.issuer_v2
    if second:
        value = b"\x0c" + bytes((len(second.encode()),)) + second.encode()
        builder = builder.add_extension(x509.UnrecognizedExtension(_ISSUER_V2, value), critical=False)
    return builder


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only")  # fmt: skip
    return x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **dict.fromkeys(names, False))


def _octets(data: bytes) -> bytes:
    """A DER OCTET STRING of up to 64 KiB."""
    length = len(data)
    if length < 128:
        return bytes((4, length)) + data
    size = 1 if length < 256 else 2
    return bytes((4, 0x80 | size)) + length.to_bytes(size) + data
