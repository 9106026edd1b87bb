"""An OpenID Connect issuer: its configuration and keys over HTTPS, in a thread, and tokens that it signs."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.simulators.web_pki import WebAuthority

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
CONFIGURATION = "/.well-known/openid-configuration"
KEYS = "/keys"


def signing_key(algorithm: str) -> SigningKey:
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def jwk(key: SigningKey, **more: Any) -> dict[str, Any]:
    """The public half (RFC 7517)."""
    public: Any = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**made, "use": "sig", **more}


@dataclass
class OidcIssuer:
    """`keys` are by their id, with the algorithm each signs by. `documents` stand in the place of true ones."""

    folder: Path
    keys: dict[str, tuple[str, SigningKey]] = field(default_factory=dict[str, tuple[str, SigningKey]])
    documents: dict[str, bytes] = field(default_factory=dict[str, bytes])
    asked: list[str] = field(default_factory=list[str])
    delay: float = 0.0

    def __post_init__(self) -> None:
        self.ca = WebAuthority(self.folder, "issuer-ca")
        if not self.keys:
            self.add("first")

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        self.keys[key_id] = (algorithm, signing_key(algorithm))

    def __enter__(self) -> Self:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                time.sleep(issuer.delay)
                body = issuer.document(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        files = self.ca.issue("issuer", "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_port}"

    def document(self, path: str) -> bytes | None:
        if path in self.documents:
            return self.documents[path]
        if path == CONFIGURATION:
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}{KEYS}"}).encode()
        if path == KEYS:
            keys = [jwk(key, kid=key_id, alg=algorithm) for key_id, (algorithm, key) in self.keys.items()]
            return json.dumps({"keys": keys}).encode()
        return None

    def token(self, key_id: str = "first", header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A good token for `spire`, unless claims say something else; one that is None is left out."""
        now = int(time.time())
        said = {"iss": self.url, "sub": "job-1", "aud": "spire", "iat": now, "exp": now + 600, **claims}
        algorithm, key = self.keys[key_id]
        kept = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(kept, key, algorithm, headers={"kid": key_id, **(header or {})})


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, or does not like the certificate, is what tests want."""
