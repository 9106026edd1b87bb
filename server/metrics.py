"""What of a server is timed from outside: its stores, by SPIRE's names. Nothing is where nobody collects metrics."""

from __future__ import annotations

from typing import Final

from operations import metrics
from operations.metrics import Key
from plugins.keymanager import KeyManager
from server.datastore.store import DataStore


def _datastore(*words: str) -> Key:
    return ("datastore", *words)


DATASTORE: Final = {
    "append_bundle": _datastore("bundle", "append"),
    "count_bundles": _datastore("bundle", "count"),
    "create_bundle": _datastore("bundle", "create"),
    "delete_bundle": _datastore("bundle", "delete"),
    "edit_bundle": _datastore("bundle", "update"),
    "update_bundle": _datastore("bundle", "update"),
    "get_bundle": _datastore("bundle", "fetch"),
    "list_bundles": _datastore("bundle", "list"),
    "prune_bundle": _datastore("bundle", "prune"),
    "set_bundle": _datastore("bundle", "set"),
    "get_ca_journal": _datastore("ca_journal", "fetch"),
    "set_ca_journal": _datastore("ca_journal", "set"),
    "create_join_token": _datastore("join_token", "create"),
    "delete_join_token": _datastore("join_token", "delete"),
    "get_join_token": _datastore("join_token", "fetch"),
    "prune_join_tokens": _datastore("join_token", "prune"),
    "take_join_token": _datastore("join_token", "delete"),
    "activate_node": _datastore("node", "update"),
    "admit_node": _datastore("node", "create"),
    "count_nodes": _datastore("node", "count"),
    "create_node": _datastore("node", "create"),
    "delete_node": _datastore("node", "delete"),
    "get_nodes": _datastore("node", "fetch"),
    "list_nodes": _datastore("node", "list"),
    "prune_nodes": _datastore("node", "prune"),
    "update_node": _datastore("node", "update"),
    "get_node_selectors": _datastore("node", "selectors", "fetch"),
    "set_node_selectors": _datastore("node", "selectors", "set"),
    "count_entries": _datastore("registration_entry", "count"),
    "create_or_return_entry": _datastore("registration_entry", "create"),
    "delete_entry": _datastore("registration_entry", "delete"),
    "get_entries": _datastore("registration_entry", "fetch"),
    "list_entries": _datastore("registration_entry", "list"),
    "prune_entries": _datastore("registration_entry", "prune"),
    "update_entry": _datastore("registration_entry", "update"),
    "create_federation_relationship": _datastore("federation_relationship", "create"),
    "delete_federation_relationship": _datastore("federation_relationship", "delete"),
    "get_federation_relationship": _datastore("federation_relationship", "fetch"),
    "list_federation_relationships": _datastore("federation_relationship", "list"),
    "update_federation_relationship": _datastore("federation_relationship", "update"),
}
"""By the method of the datastore. Where one calls another, the one that is called is timed."""

_KEY_MANAGER: Final = {
    "generate": ("server_key_manager", "generate_key"),
    "get": ("server_key_manager", "get_public_key"),
    "list": ("server_key_manager", "get_public_keys"),
}


def time_stores(datastore: DataStore, key_manager: KeyManager) -> None:
    """Time every call of the datastore and the key manager from now on."""
    metrics.time_methods(datastore, {name: key for name, key in DATASTORE.items() if hasattr(datastore, name)})
    metrics.time_methods(key_manager, _KEY_MANAGER)
