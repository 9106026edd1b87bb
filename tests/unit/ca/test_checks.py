"""What gets an approval, and the words of what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused
from server.ca import checks, dns
from server.ca.checks import ApprovedX509
from tests.simulators.pki import csr, ec_key, spki

TD = TrustDomain("example.org")
AGENT = SpiffeId(TD, "/spire/agent/join_token/x")
CSR = csr(ec_key())
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- made to be refused
MINT = "spiffe://example.org/minted"


@dataclass(frozen=True)
class Entry:
    spiffe_id: str = "spiffe://example.org/workload"
    dns_names: Sequence[str] = ()
    x509_svid_ttl: int = 7


def tampered() -> bytes:
    """A CSR whose signature is another's."""
    changed = bytearray(CSR)
    changed[-1] ^= 1
    return bytes(changed)


APPROVE: list[Callable[[bytes], object]] = [
    lambda request: checks.approve_workload(request, Entry(), TD),
    lambda request: checks.approve_agent(request, AGENT),
    lambda request: checks.approve_mint(request, TD),
]


@pytest.mark.parametrize("approve", APPROVE, ids=["workload", "agent", "mint"])
def test_csrs_prove_possession_of_a_strong_key(approve: Callable[[bytes], object]) -> None:
    for garbage in (b"", b"garbage", CSR[:-1], CSR + b"x", b"\x30" * 70_000):
        with pytest.raises(InvalidArgument, match="malformed CSR"):
            approve(garbage)
    with pytest.raises(InvalidArgument, match=r"invalid CSR signature|failed to verify CSR signature"):
        approve(tampered())
    with pytest.raises(InvalidArgument, match="unsupported public key"):
        approve(csr(WEAK_RSA))
    with pytest.raises(InvalidArgument, match="unsupported public key"):
        approve(csr(ec_key(ec.SECP256K1())))


@given(st.binary(max_size=200))
def test_garbage_is_an_invalid_argument(garbage: bytes) -> None:
    with pytest.raises(InvalidArgument):
        checks.approve_workload(garbage, Entry(), TD)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=400)
@given(st.integers(0, len(CSR) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_csr_is_refused(position: int, change: int) -> None:
    changed = bytearray(CSR)
    changed[position] ^= change
    with pytest.raises(InvalidArgument):
        checks.approve_workload(bytes(changed), Entry(), TD)


def test_workloads_get_what_their_entry_says() -> None:
    key = ec_key()
    request = csr(key, uris=["spiffe://example.org/other"], dns_names=["other"])
    taken = checks.approve_workload(request, Entry(dns_names=["a.b"]), TD).take()
    assert (str(taken.spiffe_id), taken.dns_names, taken.ttl) == ("spiffe://example.org/workload", ("a.b",), 7)
    assert taken.public_key == spki(key)
    with pytest.raises(InvalidArgument, match=r"entry has malformed SPIFFE ID: .* is not a member of trust domain"):
        checks.approve_workload(CSR, Entry("spiffe://other.org/w"), TD)
    with pytest.raises(InvalidArgument, match="entry has malformed SPIFFE ID: scheme is missing"):
        checks.approve_workload(CSR, Entry("w"), TD)
    with pytest.raises(InvalidArgument, match="entry DNS name is invalid: name must be ascii"):
        checks.approve_workload(CSR, Entry(dns_names=["ü"]), TD)


async def test_batches_name_each_fault_in_its_place() -> None:
    requests: list[tuple[bytes, checks.WorkloadEntry]] = [
        (tampered() if number % 7 == 0 else CSR, Entry()) for number in range(80)
    ]
    outcomes = await checks.approve_workloads(requests, TD)
    assert len(outcomes) == 80
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, InvalidArgument if number % 7 == 0 else ApprovedX509)


def test_agents_are_agents() -> None:
    taken = checks.approve_agent(CSR, AGENT).take()
    assert (taken.spiffe_id, taken.kind) == (AGENT, checks.Kind.AGENT)
    with pytest.raises(InvalidArgument, match="path is not in the agent namespace"):
        checks.approve_agent(CSR, SpiffeId(TD, "/workload"))


def test_servers() -> None:
    assert str(checks.approve_server(spki(ec_key()), TD).take().spiffe_id) == "spiffe://example.org/spire/server"
    with pytest.raises(InvalidArgument, match="unsupported public key"):
        checks.approve_server(spki(WEAK_RSA), TD)
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(InvalidArgument, match="unsupported public key"):
        checks.approve_server(edwards.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), TD)
    with pytest.raises(InvalidArgument, match="unable to parse public key"):
        checks.approve_server(b"garbage", TD)


@pytest.mark.parametrize(
    ("uris", "dns_names", "reason"),
    [
        ([], [], "CSR URI SAN is required"),
        ([], ["a"], "CSR URI SAN is required"),
        ([MINT, MINT], [], "only one URI SAN is expected"),
        (["https://x"], [], "CSR URI SAN is invalid: scheme is missing or invalid"),
        (["spiffe://example.org"], [], "CSR URI SAN is invalid: .*; path is empty"),
        (["spiffe://example.org/spire/server"], [], "CSR URI SAN is invalid: .*; path is in the reserved namespace"),
        (["spiffe://other.org/x"], [], "CSR URI SAN is invalid: .* is not a member of trust domain"),
        ([MINT], ["a b"], 'CSR DNS name is invalid: idna error: invalid label "a b"'),
        ([MINT], ["*.a.b", "c.a.b"], "CSR DNS name contains a wildcard that covers another non-wildcard name: name"),
    ],
)
def test_faults_of_minting_csrs(uris: list[str], dns_names: list[str], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        checks.approve_mint(csr(ec_key(), uris=uris, dns_names=dns_names), TD)


def test_minting_csrs() -> None:
    taken = checks.approve_mint(csr(ec_key(), uris=[MINT], dns_names=["a.b", "*.c.b"]), TD, -1).take()
    assert (str(taken.spiffe_id), taken.dns_names, taken.ttl) == (MINT, ("a.b", "*.c.b"), 0)
    plain = checks.approve_mint(csr(ec_key(), uris=[MINT]), TD).take()
    assert plain.subject == checks.approve_agent(CSR, AGENT).take().subject
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    asked = checks.approve_mint(csr(ec_key(), uris=[MINT], subject=named), TD).take()
    assert asked.subject == named.public_bytes()


def test_tokens() -> None:
    taken = checks.approve_jwt(SpiffeId(TD, "/w"), ["", "a"], -5, include_jti=True).take()
    assert (taken.audience, taken.ttl, taken.include_jti) == (("a",), 0, True)
    with pytest.raises(InvalidArgument, match="invalid JWT-SVID audience: cannot be empty"):
        checks.approve_jwt(SpiffeId(TD, "/w"), [""])
    with pytest.raises(InvalidArgument, match="invalid JWT-SVID audience: longer than"):
        checks.approve_jwt(SpiffeId(TD, "/w"), ["a" * 20_000, "b" * 20_000])
    with pytest.raises(InvalidArgument, match="path is in the reserved namespace"):
        checks.approve_jwt(AGENT, ["a"])


def test_approvals_are_made_here_only_and_taken_once() -> None:
    request = checks.approve_agent(CSR, AGENT).take()
    with pytest.raises(Refused, match="made by the checks only"):
        ApprovedX509(request, object())
    approved = checks.approve_agent(CSR, AGENT)
    approved.take()
    with pytest.raises(Refused, match="used already"):
        approved.take()


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a.b",
        "*.a",
        "a-b.c",
        "1.2",
        "A.b",
        "_a.b_c",
        "xn--bcher-kva.example",
        "xn--ls8h",
        "a" * 63,
        ".".join(["a" * 63] * 3),
    ],
)
def test_good_dns_names(name: str) -> None:
    dns.check_dns_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty or only whitespace"),
        (" ", "empty or only whitespace"),
        ("*.", "empty or only whitespace"),
        ("bücher", "name must be ascii"),
        ("*.*.a", "too many wildcards"),
        ("a.*.b", "wildcard must be first label"),
        ("*", "wildcard must be first label"),
        ("*a.b", "wildcard must be first label"),
        ("a.", "domain ends with dot"),
        ("a..b", "idna error"),
        (".a", "idna error"),
        ("-a", "idna error"),
        ("a-.b", "idna error"),
        ("a/b", "idna error"),
        ("XN--bcher-kva", "idna error"),
        ("xn--", "idna error"),
        ("xn--a-ecp.ru", "idna error"),
        ("a b", "idna error"),
        ("a\n", "idna error"),
        ("ab--cd", "idna error"),
        ("xn--a", "idna error"),
        ("xn--abc-", "idna error"),
        ("a" * 64, "idna error"),
        (".".join(["a" * 63] * 4), "idna error"),
    ],
)
def test_bad_dns_names(name: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        dns.check_dns_name(name)


def test_wildcard_overlap() -> None:
    dns.check_wildcard_overlap(["*.a.b", "a.b", "c.d.a.b", "x.y"])
    with pytest.raises(InvalidArgument, match="overlaps with an existing wildcard name"):
        dns.check_wildcard_overlap(["c.a.b", "*.a.b"])


def test_the_overlap_of_very_many_names_is_found_in_a_moment() -> None:
    """They are an administrator's to give, and an agent's request would hold up the event loop."""
    names = tuple(f"{number}.example.org" for number in range(100_000))
    dns.check_wildcard_overlap(("*.other.org", *names))
    with pytest.raises(InvalidArgument, match="wildcard overlap"):
        dns.check_wildcard_overlap((*names, "*.example.org"))
