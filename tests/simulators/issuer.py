"""An OIDC issuer of our own, over TLS: keys that it rotates, tokens that it makes, and bad ones where it is told to."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from attestors.oidc.fetching import DISCOVERY
from tests.simulators.registry import Answer, Asked, WebServer

AUDIENCE = "spire"
JWKS = "/keys"

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def new_key(algorithm: str) -> Key:
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def jwk(key: Key, key_id: str | None, **more: Any) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        made = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**made, **({} if key_id is None else {"kid": key_id}), **more}


class Issuer:
    """`url` is its name. `keys` are by id, and published; `answers` take the place of what is published at a path."""

    def __init__(self, web: WebServer, ca_path: Path) -> None:
        self.web = web
        self.ca_path = ca_path
        self.keys: dict[str, tuple[str, Key]] = {}
        self.answers: dict[str, Answer] = {}
        web.routes.append(self._route)
        self.add("first", "ES256")

    @property
    def url(self) -> str:
        return self.web.url

    def add(self, key_id: str, algorithm: str) -> None:
        self.keys[key_id] = (algorithm, new_key(algorithm))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of a token that counts, but for the changes; None takes a claim away."""
        now = int(time.time())
        made = {"iss": self.url, "sub": "job-1", "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 600, **changes}
        return {name: value for name, value in made.items() if value is not None}

    def token(self, key_id: str = "first", headers: dict[str, Any] | None = None, **changes: Any) -> str:
        algorithm, key = self.keys[key_id]
        return jwt.encode(self.claims(**changes), key, algorithm, headers={"kid": key_id, **(headers or {})})

    def asked(self, path: str) -> int:
        """How often."""
        return self.web.paths().count(path)

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"audiences": (AUDIENCE,), "ca_path": str(self.ca_path), **changes}

    def _route(self, asked: Asked) -> Answer | None:
        if asked.path in self.answers:
            return self.answers[asked.path]
        if asked.path == DISCOVERY:
            return Answer(body=json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}{JWKS}"}).encode())
        if asked.path == JWKS:
            keys = [jwk(key, key_id, alg=algorithm) for key_id, (algorithm, key) in self.keys.items()]
            return Answer(body=json.dumps({"keys": keys}).encode())
        return None


def server_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, its own CA, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "issuer.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "issuer.key").write_bytes(pem)
    return folder / "issuer.crt", folder / "issuer.key"


@contextmanager
def issuing(folder: Path) -> Generator[Issuer]:
    tls = server_certificate(folder)
    with WebServer(tls=tls) as web:
        yield Issuer(web, tls[0])
