from __future__ import annotations

import pytest

from attestors.sigstore.references import Reference
from operations.errors import InvalidArgument

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "name", "identifier"),
    [
        (f"docker.io/library/nginx@{DIGEST}", "index.docker.io", "library/nginx", DIGEST),
        (f"nginx@{DIGEST}", "index.docker.io", "library/nginx", DIGEST),
        (f"example/app@{DIGEST}", "index.docker.io", "example/app", DIGEST),
        (f"ghcr.io/spiffe/spire-agent:1.14.0@{DIGEST}", "ghcr.io", "spiffe/spire-agent", DIGEST),
        (f"localhost:5000/app@{DIGEST}", "localhost:5000", "app", DIGEST),
        (f"localhost/app@{DIGEST}", "localhost", "app", DIGEST),
        (f"[::1]:5000/app@{DIGEST}", "[::1]:5000", "app", DIGEST),
        ("registry:5000/team/app:v1", "registry:5000", "team/app", "v1"),
        ("nginx", "index.docker.io", "library/nginx", "latest"),
        (DIGEST, "index.docker.io", "library/sha256", "ab" * 32),
    ],
)
def test_read_as_container_tools_do(text: str, registry: str, name: str, identifier: str) -> None:
    reference = Reference.parse(text)
    assert (reference.repository.registry, reference.repository.name) == (registry, name)
    assert reference.identifier == identifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        f"@{DIGEST}",
        "app@sha256:abc",
        f"app@{DIGEST.upper()}",
        f"app@sha512:{'ab' * 64}",
        f"app@{DIGEST}@{DIGEST}",
        f"App@{DIGEST}",
        f"reg.example/../x@{DIGEST}",
        f"reg.example/a//b@{DIGEST}",
        f"reg.example/x?y@{DIGEST}",
        f"user@reg.example/app@{DIGEST}",
        f"reg.example:99999999/app@{DIGEST}",
        f"reg.example\r\nHost: other/app@{DIGEST}",
        "app:" + "t" * 129,
        "app:",
        f"reg.example/{'a' * 300}@{DIGEST}",
    ],
)
def test_what_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidArgument, match="could not parse reference") as refusal:
        Reference.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("registry", "plain"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("10.1.2.3:5000", True),
        ("192.168.0.9", True),
        ("registry.localhost:5000", True),
        ("ghcr.io", False),
        ("8.8.8.8:5000", False),
        ("169.254.169.254", False),
        ("localhost.example.org", False),
        ("10.1.2.3.example.org", False),
    ],
)
def test_tls_is_left_out_at_this_host_and_in_private_networks_only(registry: str, *, plain: bool) -> None:
    assert Reference.parse(f"{registry}/app@{DIGEST}").repository.may_be_plain is plain
