"""DataStore "sql", as the catalogue loads it."""

from __future__ import annotations

from plugins.catalog import PluginContext
from server.config.datastore import DataStoreConfiguration
from server.datastore.store import DataStore


async def load(configuration: DataStoreConfiguration, _context: PluginContext) -> DataStore:
    """Open the database. Raises what DataStore.open raises."""
    return await DataStore.open(configuration.connection_string)
