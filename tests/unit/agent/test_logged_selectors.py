from __future__ import annotations

import pytest

from agent.logged_selectors import loggable
from identity.selectors import Selector

FOUND = [
    Selector.parse(each) for each in ("unix:uid:1000", "unix:user:me", "k8s:ns:default", "k8s:ns-owner:x", "k8sx:y:z")
]


@pytest.mark.parametrize(
    ("prefixes", "text"),
    [
        ([], ""),
        (["unix"], "unix:uid:1000,unix:user:me"),
        (["unix:uid", "k8s:ns"], "k8s:ns:default,unix:uid:1000"),
        (["unix:user:me"], "unix:user:me"),
        (["unix:u"], ""),
        (["k8s"], "k8s:ns-owner:x,k8s:ns:default"),
    ],
)
def test_only_what_is_named_is_logged_and_in_order(prefixes: list[str], text: str) -> None:
    assert loggable(FOUND, prefixes) == text


def test_what_a_workload_is_does_not_fill_the_log() -> None:
    many = [Selector("unix", f"supplementary_gid:{number}") for number in range(100_000)]
    assert len(loggable(many, ["unix"])) < 5000
