"""A TPM of Python: what a real one states, and whatever no real one would, so that each check can be seen to refuse.

Only what node attestation needs: an endorsement key, an attestation key, registers, credentials, quotes and
certifications (TPM 2.0 Library, parts 1 and 2). swtpm is there to show that the structures are the real ones.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from attestors.tpm.messages import Activate, Certification
from attestors.tpm.pcrs import COUNT, extend, initial
from keystores.tpm import public_area
from tests.simulators.pki import PrivateKey, ec_key

BANKS: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
CERTIFY: Final = 0x8017
QUOTE: Final = 0x8018
MAGIC: Final = 0xFF544347
ENDORSEMENT: Final = 0x4000000B
EK_ATTRIBUTES: Final = 0x000300B2
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt: those of templates L-1 and L-2."""
EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
AK_ATTRIBUTES: Final = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""
SIGNING_ATTRIBUTES: Final = 0x00040472
"""The same, unrestricted."""
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
MADE_IN_TPM: Final = 1 << 5
SIGN: Final = 1 << 18
FIRMWARE: Final = 0x20191023_00163636


def sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def public_of(
    key: PrivateKey, attributes: int, policy: bytes = b"", cipher: bytes = b"\0\x10", scheme: bytes = b"\0\x10"
) -> bytes:
    """A TPM2B_PUBLIC. `cipher` and `scheme` are as in the structure; TPM_ALG_NULL for none."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        details = struct.pack(">HI", key.key_size, 0) + sized(numbers.n.to_bytes(key.key_size // 8))
        kind = 0x0001
    else:
        point = key.public_key().public_numbers()
        details = b"\0\x03\0\x10" + sized(point.x.to_bytes(32)) + sized(point.y.to_bytes(32))
        kind = 0x0023
    area = struct.pack(">HHI", kind, BANKS["sha256"], attributes) + sized(policy) + cipher + scheme + details
    return sized(area)


@dataclass
class SoftTpm:
    """`hierarchy` has the attestation key. The clock (ms) goes on by a second with each statement."""

    ek: PrivateKey = field(default_factory=ec_key)
    ak: ec.EllipticCurvePrivateKey = field(default_factory=ec_key)
    ak_attributes: int = AK_ATTRIBUTES
    clock: int = 1_000_000
    reset_count: int = 7
    restart_count: int = 0
    safe: bool = True
    firmware: int = FIRMWARE
    hierarchy: int = ENDORSEMENT
    pcrs: dict[str, dict[int, bytes]] = field(default_factory=dict[str, dict[int, bytes]])

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.pcrs = {bank: {number: initial(bank, number) for number in range(COUNT)} for bank in BANKS}

    def reset(self) -> None:
        """Another boot."""
        self.reset_count += 1
        self.restart_count = 0
        self._start()

    def extend(self, number: int, digests: dict[str, bytes]) -> None:
        for bank, digest in digests.items():
            self.pcrs[bank][number] = extend(bank, self.pcrs[bank][number], (digest,))

    @property
    def ek_public(self) -> bytes:
        return public_of(self.ek, EK_ATTRIBUTES, EK_POLICY, cipher=struct.pack(">HHH", 0x0006, 128, 0x0043))

    @property
    def ak_public(self) -> bytes:
        return public_of(self.ak, self.ak_attributes, scheme=struct.pack(">HH", 0x0018, BANKS["sha256"]))

    @property
    def ak_name(self) -> bytes:
        return public_area.parse(self.ak_public).name

    def activate(self, asked: Activate) -> bytes:
        """TPM2_ActivateCredential. Raises ValueError, as a TPM says TPM_RC_INTEGRITY."""
        seed = self._seed(asked.secret[2:])
        (size,) = struct.unpack_from(">H", asked.credential, 2)
        integrity, identity = asked.credential[4 : 4 + size], asked.credential[4 + size :]
        expected = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), identity + self.ak_name, "sha256")
        if not hmac.compare_digest(integrity, expected):
            raise ValueError("TPM_RC_INTEGRITY: the credential is for another object")
        key = _kdfa(seed, b"STORAGE", self.ak_name, 128)
        decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
        return (decryptor.update(identity) + decryptor.finalize())[2:]

    def _seed(self, encrypted: bytes) -> bytes:
        if isinstance(self.ek, rsa.RSAPrivateKey):
            sha256 = hashes.SHA256()
            return self.ek.decrypt(encrypted, padding.OAEP(padding.MGF1(sha256), sha256, b"IDENTITY\0"))
        x, y = encrypted[2:34], encrypted[36:68]
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
        z = self.ek.exchange(ec.ECDH(), numbers.public_key())
        own = self.ek.public_key().public_numbers().x.to_bytes(32)
        return hashlib.sha256(struct.pack(">I", 1) + z + b"IDENTITY\0" + x + own).digest()

    def quote(self, nonce: bytes, bank: str, pcrs: tuple[int, ...]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE."""
        bitmap = sum(1 << number for number in pcrs).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(self.pcrs[bank][number] for number in sorted(pcrs))).digest()
        statement = self.statement(QUOTE, nonce, struct.pack(">IHB", 1, BANKS[bank], 3) + bitmap + sized(digest))
        return statement, self.sign(statement)

    def certify(self, key: PrivateKey, nonce: bytes, attributes: int = SIGNING_ATTRIBUTES) -> Certification:
        """Of a key that this TPM says it holds."""
        public = public_of(key, attributes)
        name = public_area.parse(public).name
        statement = self.statement(CERTIFY, nonce, sized(name) + sized(_below(struct.pack(">I", self.hierarchy), name)))
        return Certification(statement=statement, signature=self.sign(statement), public=public)

    def statement(self, kind: int, nonce: bytes, attested: bytes, *, magic: int = MAGIC) -> bytes:
        self.clock += 1000
        times = struct.pack(">QII?Q", self.clock, self.reset_count, self.restart_count, self.safe, self.firmware)
        signer = _below(struct.pack(">I", self.hierarchy), self.ak_name)
        return struct.pack(">IH", magic, kind) + sized(signer) + sized(nonce) + times + attested

    def sign(self, statement: bytes, algorithm: str = "sha256") -> bytes:
        """A TPMT_SIGNATURE by the attestation key."""
        used: hashes.HashAlgorithm = hashes.SHA256() if algorithm == "sha256" else hashes.SHA384()
        r, s = decode_dss_signature(self.ak.sign(statement, ec.ECDSA(used)))
        return struct.pack(">HH", 0x0018, BANKS[algorithm]) + sized(r.to_bytes(32)) + sized(s.to_bytes(32))


def _below(parent: bytes, name: bytes) -> bytes:
    return name[:2] + hashlib.sha256(parent + name).digest()


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    block = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, block, "sha256")[: bits // 8]
