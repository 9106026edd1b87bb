"""DataStore "sql", as the catalogue loads it."""

from __future__ import annotations

from plugins.catalog import PluginContext
from server.config.datastore import DataStoreConfiguration
from server.datastore.backend import Settings
from server.datastore.store import DataStore


async def load(configuration: DataStoreConfiguration, context: PluginContext) -> DataStore:
    """Open the database. Raises what DataStore.open raises."""
    log = context.log

    def tell(statement: str) -> None:
        log.debug("SQL", statement=statement)

    settings = Settings(
        kind=configuration.kind,
        replica=configuration.ro_connection_string,
        tls=configuration.tls(),
        max_connections=max(configuration.max_open_conns or 0, 0),
        max_idle=configuration.max_idle_conns,
        max_lifetime=configuration.lifetime(),
        migrate=not configuration.disable_migration,
        log_statement=tell if configuration.log_sql else None,
    )
    return await DataStore.open(configuration.connection_string, settings)
