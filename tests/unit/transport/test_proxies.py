from __future__ import annotations

import pytest

from operations.errors import ConfigurationError
from transport.web.proxies import Proxy, proxy_for
from transport.web.urls import Url

PROXY = {"HTTPS_PROXY": "http://user:p%40ss@proxy.example:3128", "HTTP_PROXY": "plain.example:8080"}


def test_by_scheme() -> None:
    found = proxy_for(Url.parse("https://ghcr.io/v2/"), PROXY)
    assert found == Proxy("proxy.example", 3128, "Basic dXNlcjpwQHNz")
    assert proxy_for(Url.parse("http://10.0.0.1/"), PROXY) == Proxy("plain.example", 8080)
    assert proxy_for(Url.parse("https://ghcr.io/"), {"https_proxy": "http://small"}) == Proxy("small", 80)
    assert proxy_for(Url.parse("https://ghcr.io/"), {}) is None


@pytest.mark.parametrize(
    ("listed", "url", "exempt"),
    [
        ("ghcr.io", "https://ghcr.io/", True),
        ("ghcr.io", "https://sub.ghcr.io/", True),
        ("ghcr.io", "https://xghcr.io/", False),
        (".ghcr.io", "https://ghcr.io/", False),
        (".ghcr.io", "https://sub.ghcr.io/", True),
        ("*.ghcr.io", "https://sub.ghcr.io/", True),
        ("other, ghcr.io", "https://ghcr.io/", True),
        ("ghcr.io:5000", "https://ghcr.io/", False),
        ("ghcr.io:443", "https://ghcr.io/", True),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.0.0.0/99", "https://10.1.2.3/", False),
        ("2001:db8::1", "https://[2001:db8::1]/", True),
        ("*", "https://anything/", True),
        ("", "https://localhost:5000/", True),
        ("", "https://127.0.0.1/", True),
    ],
)
def test_who_is_exempt(listed: str, url: str, *, exempt: bool) -> None:
    found = proxy_for(Url.parse(url), {**PROXY, "NO_PROXY": listed})
    assert (found is None) is exempt


@pytest.mark.parametrize("proxy", ["https://secure.example", "socks5://host", "http://host:port", "http://"])
def test_what_is_none_is_refused_and_not_shown(proxy: str) -> None:
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY"):
        proxy_for(Url.parse("https://ghcr.io/"), {"HTTPS_PROXY": proxy})
