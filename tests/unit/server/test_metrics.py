"""The names under which a server's stores are timed are those of their methods."""

from __future__ import annotations

from server import metrics
from server.datastore.store import DataStore

OTHERS = ("federation_relationship", "update_bundle")
"""Methods that a datastore may have besides."""


def test_every_timed_method_exists() -> None:
    timed = {name for name in metrics.DATASTORE if not any(other in name for other in OTHERS)}
    assert not timed - set(vars(DataStore))
