"""A small ACME server (RFC 8555) in a thread, over HTTPS, that answers a step as a test has it.

It checks signatures, URLs and nonces, and looks at TLS-ALPN-01's proofs (RFC 8737) on a port of loopback; what a real
one checks besides is shown with Pebble in tests/interop.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import secrets
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding

from tests.simulators.web_pki import WebAuthority

PROBLEM = "application/problem+json"
JSON = "application/json"
PEM = "application/pem-certificate-chain"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


@dataclass(frozen=True)
class Canned:
    """An answer. An endless one repeats its body until nobody listens."""

    status: int
    body: bytes = b""
    content: str = JSON
    headers: dict[str, str] = field(default_factory=dict[str, str])
    endless: bool = False


def problem(kind: str, detail: str = "", status: int = 403, **headers: str) -> Canned:
    document = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Canned(status, json.dumps(document).encode(), PROBLEM, named)


@dataclass
class AcmeServer:
    """`answers` has what a step is answered with instead, once each; a step is the first part of its path.

    `validity` is of what it issues, from `age` ago; `named` other names than were ordered, `key` another key. Without
    `port` every proof is taken.
    """

    folder: Path
    port: int = 0
    terms: str = "https://ca.test/terms"
    validity: datetime.timedelta = datetime.timedelta(days=90)
    age: datetime.timedelta = datetime.timedelta(minutes=1)
    named: str = ""
    key: ec.EllipticCurvePublicKey | None = None
    answers: dict[str, list[Canned | None]] = field(default_factory=dict[str, list[Canned | None]])
    asked: Counter[str] = field(default_factory=Counter[str])
    contacts: list[Any] = field(default_factory=list[Any])
    entered: Callable[[str], None] = lambda _: None

    def __enter__(self) -> Self:
        self.authority = WebAuthority(self.folder, "acme-ca")
        files = self.authority.issue("acme-server", "127.0.0.1")
        self._nonces: set[str] = set()
        self._accounts: dict[str, Any] = {}
        self._orders: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        simulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_HEAD(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length", "0"))
                sent = simulator.answer(self.path, self.rfile.read(size))
                self.send_response(sent.status)
                self.send_header("Content-Type", sent.content)
                self.send_header("Replay-Nonce", simulator.nonce())
                for name, value in sent.headers.items():
                    self.send_header(name, value)
                if not sent.endless:
                    self.send_header("Content-Length", str(len(sent.body)))
                self.end_headers()
                with suppress(OSError):
                    while self.command != "HEAD":
                        self.wfile.write(sent.body)
                        if not sent.endless:
                            break
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(files.certificate, files.key)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_port}"

    @property
    def orders(self) -> int:
        """How many were begun."""
        return len(self._orders)

    @property
    def directory(self) -> str:
        return f"{self.url}/directory"

    def nonce(self) -> str:
        made = secrets.token_urlsafe(16)
        self._nonces.add(made)
        return made

    def answer(self, path: str, body: bytes) -> Canned:
        step = path.split("/")[1]
        with self._lock:
            self.asked[step] += 1
            canned = self.answers.get(step)
            if canned:
                instead = canned.pop(0)
                if instead is not None:
                    return instead
            self.entered(step)
            if step == "directory":
                return self._directory()
            if step == "nonce":
                return Canned(200)
            request = json.loads(body)
            protected = json.loads(_decoded(request["protected"]))
            if protected["nonce"] not in self._nonces:
                return problem("badNonce", "never seen", 400)
            self._nonces.discard(protected["nonce"])
            assert protected["url"] == f"{self.url}{path}"
            jwk = protected["jwk"] if step == "account" else self._accounts[protected["kid"]]
            _verify(request, jwk)
            payload: Any = json.loads(_decoded(request["payload"]) or b"null")
            return self._act(step, path.rpartition("/")[2], payload, jwk)

    def _directory(self) -> Canned:
        named = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order"}
        document: dict[str, Any] = {name: f"{self.url}/{place}" for name, place in named.items()}
        return _json(200, document | {"meta": {"termsOfService": self.terms}})

    def _act(self, step: str, name: str, payload: Any, jwk: Any) -> Canned:
        match step:
            case "account":
                url = f"{self.url}/account/{_thumbprint(jwk)}"
                known, self._accounts[url] = url in self._accounts, jwk
                self.contacts.append(payload.get("contact"))
                return _json(200 if known else 201, {"status": "valid"}, Location=url)
            case "order" if payload is not None:
                number = len(self._orders)
                (identifier,) = payload["identifiers"]
                token = secrets.token_urlsafe(16)
                self._orders.append({"status": "pending", "identifier": identifier, "token": token, "proof": "pending"})
                return _json(201, self._order(number), Location=f"{self.url}/order/{number}")
            case "order":
                return _json(200, self._order(int(name)))
            case "authorization":
                return _json(200, self._authorization(int(name)))
            case "challenge":
                self._look(int(name), jwk)
                return _json(200, self._authorization(int(name))["challenges"][0])
            case "finalize":
                order: dict[str, Any] = self._orders[int(name)]
                if order["status"] != "ready":
                    return problem("orderNotReady", "prove the domain first")
                csr: str = payload["csr"]
                order |= {"status": "valid", "chain": self._issue(_decoded(csr))}
                return _json(200, self._order(int(name)))
            case "certificate":
                return Canned(200, self._orders[int(name)]["chain"], PEM)
            case _:
                return problem("malformed", f"no such place: {step}", 404)

    def _order(self, number: int) -> dict[str, Any]:
        order = self._orders[number]
        if order["status"] == "pending" and order["proof"] != "pending":
            order["status"] = "ready" if order["proof"] == "valid" else "invalid"
        shown = {
            "status": order["status"], "identifiers": [order["identifier"]],
            "authorizations": [f"{self.url}/authorization/{number}"], "finalize": f"{self.url}/finalize/{number}",
        }  # fmt: skip
        return shown | ({"certificate": f"{self.url}/certificate/{number}"} if "chain" in order else {})

    def _authorization(self, number: int) -> dict[str, Any]:
        order = self._orders[number]
        challenge: dict[str, Any] = {
            "type": "tls-alpn-01", "status": order["proof"], "token": order["token"],
            "url": f"{self.url}/challenge/{number}",
        }  # fmt: skip
        if order["proof"] == "invalid":
            challenge["error"] = json.loads(problem("unauthorized", "the proof is another one").body)
        others = {"type": "http-01", "status": "pending", "token": "x", "url": f"{self.url}/none"}
        return {"status": order["proof"], "identifier": order["identifier"], "challenges": [challenge, others]}

    def _look(self, number: int, jwk: Any) -> None:
        order = self._orders[number]
        wanted = hashlib.sha256(f"{order['token']}.{_thumbprint(jwk)}".encode()).digest()
        shown = proof_at(self.port, order["identifier"]["value"]) if self.port else wanted
        order["proof"] = "valid" if shown == wanted else "invalid"

    def _issue(self, request: bytes) -> bytes:
        csr = x509.load_der_x509_csr(request)
        assert csr.is_signature_valid
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        start = datetime.datetime.now(datetime.UTC) - self.age
        public_key = self.key or csr.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        return self.authority.sign(
            public_key, x509.SubjectAlternativeName([x509.DNSName(self.named)]) if self.named else names,
            start, start + self.validity,
        ) + self.authority.certificate.public_bytes(Encoding.PEM)  # fmt: skip


def proof_at(port: int, name: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes | None:
    """What a validator finds: the digest in the certificate for acme-tls/1, None for no connection."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    tls.minimum_version = tls.maximum_version = version
    tls.set_alpn_protocols(["acme-tls/1"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
            tls.wrap_socket(sock, server_hostname=name) as connection,
        ):
            if connection.selected_alpn_protocol() != "acme-tls/1":
                return None
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except OSError:
        return None
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    found = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
    assert found.critical
    assert isinstance(found.value, x509.UnrecognizedExtension)
    assert found.value.value[:2] == b"\x04\x20"
    return found.value.value[2:]


def _json(status: int, document: object, **headers: str) -> Canned:
    return Canned(status, json.dumps(document).encode(), JSON, headers)


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _thumbprint(jwk: dict[str, str]) -> str:
    members = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _verify(request: dict[str, str], jwk: dict[str, str]) -> None:
    x, y = (int.from_bytes(_decoded(jwk[name]), "big") for name in ("x", "y"))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    raw = _decoded(request["signature"])
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(signature, f"{request['protected']}.{request['payload']}".encode(), ec.ECDSA(hashes.SHA256()))
