"""A TPM manufacturer's CA, for certificates of endorsement keys that a test needs to be bad in one way."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from tests.simulators.pki import PrivateKey, ec_key, key_usage

DAY = datetime.timedelta(days=1)
EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")
TPM = (("2.23.133.2.1", "id:49465800"), ("2.23.133.2.2", "SLB9670"), ("2.23.133.2.3", "id:00070055"))
"""Manufacturer, model and version in an endorsement certificate (TCG EK Credential Profile 2.5, 3.2.9)."""


@dataclass
class EndorsementCa:
    name: str = "Acme TPM CA"
    key: ec.EllipticCurvePrivateKey = field(default_factory=ec_key)
    now: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    @property
    def _subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._subject)
            .issuer_name(self._subject)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(self.now - 100 * DAY)
            .not_valid_after(self.now + 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def certify(
        self, key: PrivateKey, *, serial: int = 2, days: int = 10, purpose: ObjectIdentifier = EK_CERTIFICATE
    ) -> bytes:
        """A DER certificate of an endorsement key, whose end is `days` from now."""
        attributes = [x509.NameAttribute(ObjectIdentifier(oid), value) for oid, value in TPM]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(self.now - 50 * DAY)
            .not_valid_after(self.now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage("key_encipherment", "key_agreement"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(attributes))]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def revoke(self, *serials: int, days: int = 10) -> bytes:
        """A PEM revocation list, which ends `days` from now."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._subject)
            .last_update(self.now - 20 * DAY)
            .next_update(self.now + days * DAY)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.now - DAY)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
