"""The server's plugins: what is built in, and how a configuration's set is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attestors.join_token.server import NAME, JoinTokenAttestor, JoinTokens
from identity.spiffeid import TrustDomain
from operations import logs
from operations.errors import ConfigurationError
from plugins import catalog
from plugins.bundlepublisher import BundlePublisher
from plugins.catalog import Builtin, Builtins, PluginBlock, PluginContext
from plugins.context import PublishingContext
from plugins.credentialcomposer import CredentialComposer
from plugins.external import loading
from plugins.external.loading import ExternalPlugins, Facades
from plugins.keymanager import KeyManager
from plugins.nodeattestor import ServerNodeAttestor
from plugins.notifier import Notifier
from plugins.upstreamauthority import UpstreamAuthority
from server.authorization import Roots
from server.config import ServerConfig
from server.datastore.store import DataStore
from server.nodes import StoredNodeRecords, WithIdAsSelector

if TYPE_CHECKING:
    from transport.tls import InProcessIdentity

BUILTINS: Builtins = {
    "BundlePublisher": {
        "disk": Builtin("publishers.bundle_file:PublisherConfiguration", "publishers.bundle_file:load_publisher"),
        "https": Builtin("publishers.bundle_web:PublisherConfiguration", "publishers.bundle_web:load_publisher"),
    },
    "CredentialComposer": {"uniqueid": Builtin("governance.uniqueid:Configuration", "governance.uniqueid:load")},
    "DataStore": {"sql": Builtin("server.config.datastore:DataStoreConfiguration", "server.sql:load")},
    "KeyManager": {
        "disk": Builtin("keystores.disk:ServerConfiguration", "keystores.disk:load_server"),
        "hashicorp_vault": Builtin("keystores.vault.manager:Configuration", "keystores.vault.manager:load"),
        "memory": Builtin("keystores.memory:Configuration", "keystores.memory:load"),
        "pkcs11": Builtin("keystores.pkcs11.configuration:Configuration", "keystores.pkcs11.manager:load_server"),
        "tpm": Builtin("keystores.tpm.configuration:Configuration", "keystores.tpm.manager:load_server"),
    },
    "NodeAttestor": {
        "http_challenge": Builtin(
            "attestors.http_challenge.server:Configuration", "attestors.http_challenge.server:load"
        ),
        "join_token": Builtin("attestors.join_token.server:Configuration", "attestors.join_token.server:load"),
        "sshpop": Builtin("attestors.sshpop.server:Configuration", "attestors.sshpop.server:load"),
        "tpm": Builtin("attestors.tpm.configuration:Configuration", "attestors.tpm.server:load"),
        "tpm_devid": Builtin("attestors.tpm_devid.server:Configuration", "attestors.tpm_devid.server:load"),
        "x509pop": Builtin("attestors.x509pop.server:Configuration", "attestors.x509pop.server:load"),
    },
    "Notifier": {
        "disk": Builtin("publishers.bundle_file:NotifierConfiguration", "publishers.bundle_file:load_notifier"),
        "https": Builtin("publishers.bundle_web:NotifierConfiguration", "publishers.bundle_web:load_notifier"),
    },
    "UpstreamAuthority": {
        "disk": Builtin("authorities.disk:Configuration", "authorities.disk:load"),
        "pkcs11": Builtin("authorities.pkcs11:Configuration", "authorities.pkcs11:load"),
        "spire": Builtin("authorities.spire:Configuration", "authorities.spire:load"),
        "tpm": Builtin("authorities.tpm:Configuration", "authorities.tpm:load"),
        "vault": Builtin("authorities.vault:Configuration", "authorities.vault:load"),
    },
}

FACADES: Facades = {
    "BundlePublisher": "plugins.external.bundlepublisher:ExternalBundlePublisher",
    "KeyManager": "keystores.external:ServerKeyManager",
    "NodeAttestor": "plugins.external.nodeattestor:ExternalServerNodeAttestor",
    "Notifier": "plugins.external.notifier:ExternalNotifier",
    "CredentialComposer": "plugins.external.credentialcomposer:ExternalCredentialComposer",
    "KeyManager": "keystores.external:ServerKeyManager",
    "NodeAttestor": "plugins.external.nodeattestor:ExternalServerNodeAttestor",
    "UpstreamAuthority": "plugins.external.upstreamauthority:ExternalUpstreamAuthority",
}
"""The plugin types of which external ones are hosted."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What a server cannot start without."""

    key_manager: KeyManager
    datastore: DataStore

    async def close(self) -> None:
        await self.key_manager.close()
        await self.datastore.close()


@dataclass(frozen=True, slots=True)
class ServerContext(PluginContext):
    """What a server's node attestor gets besides."""

    join_tokens: JoinTokens
    roots: Roots
    node_records: StoredNodeRecords

    async def authorities(self) -> Sequence[bytes]:
        """The X.509 authorities of the server's own trust domain, DER. Raises SpireError."""
        return await self.roots(TrustDomain(self.trust_domain))


def check(config: ServerConfig, *, files: bool = False) -> None:
    """Check every plugin's name and settings without loading any, and with `files` the files that they name.

    Raises ConfigurationError.
    """
    catalog.check(config.plugins, catalog.SERVER, BUILTINS, config.file, FACADES, files=files)


async def validate_external(config: ServerConfig) -> Sequence[ConfigurationError]:
    """What external plugins find wrong with their configuration: they are started for it, and ended."""
    from server.host_services import HostServices  # which a command that validates needs only here

    return await loading.validate(config.plugins, FACADES, HostServices().services, config.trust_domain.name)


async def open_stores(config: ServerConfig, external: ExternalPlugins) -> Stores:
    """Open the key manager and the datastore, side by side. Raises SpireError; what was open by then is closed."""
    blocks = {block.type: block for block in config.plugins if block.enabled}
    opening = [
        asyncio.create_task(catalog.load(blocks[kind], BUILTINS, _context(config, kind, external))) for kind in _STORES
    ]
    await asyncio.wait(opening)
    if all(task.exception() is None for task in opening):
        key_manager, datastore = (task.result() for task in opening)
        return Stores(key_manager, datastore)
    for task in opening:
        if task.exception() is None:
            await task.result().close()
    raise next(error for task in opening if (error := task.exception()) is not None)


async def load_node_attestors(
    config: ServerConfig, join_tokens: JoinTokens, roots: Roots, records: StoredNodeRecords, external: ExternalPlugins
) -> Mapping[str, ServerNodeAttestor]:
    """The node attestors by name. Join tokens need no block, as in SPIRE: an operator made each of them."""
    log = logs.get("node_attestor")
    context = ServerContext(
        config.trust_domain.name, config.data_dir, log, join_tokens, roots, records, external=external
    )
    attestors: dict[str, ServerNodeAttestor] = {NAME: JoinTokenAttestor(config.trust_domain, join_tokens)}
    for block in _enabled(config, "NodeAttestor"):
        attestors[block.name] = await catalog.load(block, BUILTINS, context)
    if config.agent_spiffe_id_as_selector:
        return {name: WithIdAsSelector(attestor) for name, attestor in attestors.items()}
    return attestors


async def load_upstream_authority(config: ServerConfig, external: ExternalPlugins) -> UpstreamAuthority | None:
    """The upstream authority, where one is configured. Raises SpireError."""
    for block in _enabled(config, "UpstreamAuthority"):
        authority: UpstreamAuthority = await catalog.load(block, BUILTINS, _context(config, block.type, external))
        return authority
    return None


async def load_composers(config: ServerConfig, external: ExternalPlugins) -> Sequence[CredentialComposer]:
    """The credential composers, in the order of the configuration. Raises SpireError."""
    blocks = _enabled(config, "CredentialComposer")
    return [await catalog.load(block, BUILTINS, _context(config, block.type, external)) for block in blocks]


async def load_publishing(
    config: ServerConfig, identity: Callable[[], InProcessIdentity], external: ExternalPlugins
) -> tuple[Sequence[BundlePublisher], Sequence[Notifier]]:
    """Who is told of the bundle. Raises SpireError; those that were loaded by then are closed."""
    loaded: dict[str, list[Any]] = {"BundlePublisher": [], "Notifier": []}
    try:
        for kind, plugins in loaded.items():
            log = logs.get(kind.lower())
            context = PublishingContext(config.trust_domain.name, config.data_dir, log, identity, external=external)
            for block in _enabled(config, kind):
                plugins.append(await catalog.load(block, BUILTINS, context))
    except BaseException:
        for plugin in (each for plugins in loaded.values() for each in plugins):
            await plugin.close()
        raise
    return loaded["BundlePublisher"], loaded["Notifier"]


def _enabled(config: ServerConfig, kind: str) -> Sequence[PluginBlock]:
    return [block for block in config.plugins if block.type == kind and block.enabled]


_STORES = ("KeyManager", "DataStore")


def _context(config: ServerConfig, kind: str, external: ExternalPlugins) -> PluginContext:
    return PluginContext(config.trust_domain.name, config.data_dir, logs.get(kind.lower()), external=external)
