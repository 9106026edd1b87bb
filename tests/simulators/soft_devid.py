"""A DevID whose TPM is Python: what a real one sends, and whatever no real one would, to see each check refuse."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from attestors.tpm_devid.messages import AttestationRequest, ChallengeRequest, ChallengeResponse
from tests.simulators.nodes import Authority, Shape, ec_key, root, rsa_key

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

SHA256: Final = 0x000B
EK_ATTRIBUTES: Final = 0x000300B2
AK_ATTRIBUTES: Final = 0x00050072
DEVID_ATTRIBUTES: Final = 0x00040072
RESTRICTED: Final = 1 << 16
FIXED_TPM: Final = 1 << 1
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
MAGIC, CERTIFY, QUOTE = 0xFF544347, 0x8017, 0x8018
_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_AES_128_CFB: Final = struct.pack(">HHH", 0x0006, 128, 0x0043)
_NULL: Final = b"\0\x10"


def sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def public_of(key: Key, attributes: int, *, storage: bool = False) -> bytes:
    """A TPMT_PUBLIC, bound to SHA-256 where it signs."""
    head = struct.pack(">HI", SHA256, attributes) + sized(_EK_POLICY if storage else b"")
    cipher = _AES_128_CFB if storage else _NULL
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = _NULL if storage else struct.pack(">HH", 0x0014, SHA256)
        modulus = key.public_key().public_numbers().n.to_bytes(key.key_size // 8)
        return b"\0\x01" + head + cipher + scheme + struct.pack(">HI", key.key_size, 0) + sized(modulus)
    point = key.public_key().public_numbers()
    curve = struct.pack(">HHHHH", 0x0018, SHA256, {256: 3, 384: 4}[key.key_size], 0x0010, key.key_size // 8)
    size = key.key_size // 8
    return b"\0\x23" + head + cipher + curve + point.x.to_bytes(size) + sized(point.y.to_bytes(size))


def name_of(public: bytes) -> bytes:
    return struct.pack(">H", SHA256) + hashlib.sha256(public).digest()


DEVID_ROOT: Final = root("devid-root")
MANUFACTURER: Final = root("manufacturer")
_EK, _AK = rsa_key(), rsa_key()


@dataclass
class SoftDevId:
    """A node: its keys and certificates. Change whatever should be wrong."""

    devid: Key = field(default_factory=ec_key)
    ek: Key = field(default_factory=lambda: _EK)
    ak: Key = field(default_factory=lambda: _AK)
    devid_attributes: int = DEVID_ATTRIBUTES
    ak_attributes: int = AK_ATTRIBUTES
    ek_attributes: int = EK_ATTRIBUTES
    magic: int = MAGIC
    kind: int = CERTIFY
    nonce: bytes = b""
    chain: tuple[Authority, ...] = ()
    ek_authority: Authority = field(default_factory=lambda: MANUFACTURER)
    ek_shape: Shape = field(default_factory=lambda: Shape(cn="", usage=("key_encipherment",)))

    def __post_init__(self) -> None:
        if not self.chain:
            above = DEVID_ROOT.sub("devid-intermediate")
            self.chain = (above.node(Shape(cn="node-1"), self.devid), above)

    def request(self) -> AttestationRequest:
        devid = public_of(self.devid, self.devid_attributes)
        statement = self.statement(name_of(devid))
        return AttestationRequest(
            devid_cert=tuple(each.der for each in self.chain),
            devid_pub=devid,
            ek_cert=self.ek_authority.node(self.ek_shape, self.ek).der,
            ek_pub=public_of(self.ek, self.ek_attributes, storage=True),
            ak_pub=self.ak_public,
            certified_devid=statement,
            certification_signature=self.sign(statement),
        )

    @property
    def ak_public(self) -> bytes:
        return public_of(self.ak, self.ak_attributes)

    def statement(self, name: bytes) -> bytes:
        clock = struct.pack(">QIIBQ", 1_000_000, 7, 0, 1, 0x20191023_00163636)
        signer = sized(name_of(self.ak_public))
        head = struct.pack(">IH", self.magic, self.kind)
        return head + signer + sized(self.nonce) + clock + sized(name) + sized(name)

    def sign(self, statement: bytes) -> bytes:
        if isinstance(self.ak, rsa.RSAPrivateKey):
            made = self.ak.sign(statement, padding.PKCS1v15(), hashes.SHA256())
            return struct.pack(">HH", 0x0014, SHA256) + sized(made)
        return struct.pack(">HH", 0x0018, SHA256) + sized(b"\1") + sized(b"\1")

    def respond(self, challenge: ChallengeRequest) -> ChallengeResponse:
        nonce = challenge.devid or b""
        if isinstance(self.devid, rsa.RSAPrivateKey):
            signature = self.devid.sign(nonce, padding.PKCS1v15(), hashes.SHA256())
        else:
            signature = self.devid.sign(nonce, ec.ECDSA(hashes.SHA256()))
        return ChallengeResponse(devid=signature, cred_activation=self.activate(challenge))

    def activate(self, challenge: ChallengeRequest) -> bytes:
        """TPM2_ActivateCredential (part 1, 24.5), without a look at the integrity."""
        activation = challenge.cred_activation
        assert activation is not None
        assert activation.credential is not None
        assert activation.secret is not None
        assert isinstance(self.ek, rsa.RSAPrivateKey)
        sha256 = hashes.SHA256()
        seed = self.ek.decrypt(activation.secret, padding.OAEP(padding.MGF1(sha256), sha256, b"IDENTITY\0"))
        [size] = struct.unpack_from(">H", activation.credential)
        identity = activation.credential[2 + size :]
        label = struct.pack(">I", 1) + b"STORAGE\0" + name_of(self.ak_public) + struct.pack(">I", 128)
        cipher = Cipher(algorithms.AES(hmac.digest(seed, label, "sha256")[:16]), CFB(bytes(16))).decryptor()
        return (cipher.update(identity) + cipher.finalize())[2:]
