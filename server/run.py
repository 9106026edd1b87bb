"""The running server: opens its stores, starts its authority, listens, and ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from identity.spiffeid import SpiffeId
from keystores.inspection import Inspection, Use
from operations import features, logs, program, sdnotify, startup, telemetry
from operations.errors import ConfigurationError, PermanentlyUnusable
from operations.version import VERSION
from plugins.blocks import key_manager_of
from plugins.external.loading import ExternalPlugins
from server import catalog
from server.authority_store import DatastoreAuthorities
from server.authorization import Authorizer, PeerIdentities, Policy
from server.ca.certificate_authority import CaSettings, CertificateAuthority, Subject
from server.catalog import Stores
from server.config import ServerConfig
from server.datastore.store import DataStore
from server.entries import EntryIndex
from server.federation.following import Following
from server.health import Health, parts
from server.host_services import HostServices, Parts
from server.housekeeping import Housekeeping, NodeHousekeeping
from server.join_tokens import StoredJoinTokens
from server.metrics import time_stores
from server.nodes import AttestedNodes, StoredNodeRecords
from server.observing import View
from server.own_svid import ServerSvid
from server.publishing import Publishing
from server.rate_limits import server_limits
from server.rpc.agent import AgentService
from server.rpc.bundle import BundleService
from server.rpc.call import Gate
from server.rpc.debug import DebugService
from server.rpc.entry import EntryService
from server.rpc.health import HealthService
from server.rpc.keys import KeysService, uses_of
from server.rpc.localauthority import LocalAuthorityService
from server.rpc.logger import LoggerService
from server.rpc.services import Service, router
from server.rpc.svid import SvidService
from server.rpc.trustdomain import TrustDomainService
from server.trust import TrustBundles
from transport.limits import SERVER_LIMITS
from transport.server import Server

if TYPE_CHECKING:
    from server.federation.endpoint import Endpoint

SOCKET_MODE = 0o770
SOCKET_FOLDER_MODE = 0o750
DATA_DIR_MODE = 0o755

CONNECTION_AGE = 180.0
"""Seconds after which a caller over TCP connects anew, so that it sees the server's current SVID."""

GRACE = 10.0
"""Seconds that calls may still take once the server is told to stop."""


async def run(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit status: 0, or 1 after one line in the log."""

    def ready() -> None:
        startup.finished()
        sdnotify.serving(f"Serving {config.trust_domain.id} on {config.bind_address}:{config.bind_port}")

    return await program.serve(config, lambda: serve(config, ready), name="Server", failed="Fatal run error")


async def serve(config: ServerConfig, ready: Callable[[], None] = lambda: None) -> None:
    """Start, call `ready`, and serve until cancelled. Raises SpireError when the server cannot start or go on."""
    log = logs.get()
    log.info(
        "Configured",
        admin_ids=[str(admin) for admin in config.admin_ids],
        data_dir=config.data_dir,
        launch_log_level=logs.launch_level(),
        version=VERSION,
    )
    catalog.check(config)
    _make_folder(config.data_dir, DATA_DIR_MODE, "data_dir")
    _make_folder(str(Path(config.socket_path).parent), SOCKET_FOLDER_MODE, "socket_path")
    sinks = telemetry.open_sinks(config.telemetry, service="spire_server", trust_domain=config.trust_domain.name)
    async with AsyncExitStack() as cleanup:
        host_services = HostServices()
        external = ExternalPlugins(catalog.FACADES, host_services.services)
        cleanup.push_async_callback(external.close)
        external.reconfigure_on_signal()
        policy = await _open_policy(config, cleanup)
        stores = await catalog.open_stores(config, external)
        cleanup.push_async_callback(stores.close)
        time_stores(stores.datastore, stores.key_manager)
        house = await _House.build(config, stores, external, host_services, policy)
        cleanup.push_async_callback(house.drain)
        await house.announce()
        await house.listen()
        observing = await house.view.open(sinks, cleanup)
        ready()
        cleanup.callback(sdnotify.stopping)
        await _first_failure((*house.tasks(), *observing))


class _House:
    """The rooms of a server, joined."""

    def __init__(
        self,
        config: ServerConfig,
        authority: CertificateAuthority,
        svid: ServerSvid,
        view: View,
        following: Following,
        housekeeping: Sequence[Housekeeping | NodeHousekeeping],
        publishing: Publishing,
        remote: Sequence[Service],
        local: Sequence[Service],
        gate: Gate,
        endpoint: Endpoint | None,
    ) -> None:
        self._config = config
        self._authority = authority
        self._svid = svid
        self.view = view
        self._following = following
        self._housekeeping = housekeeping
        self._endpoint = endpoint
        self._publishing = publishing
        self._remote = Server(router(remote, gate), limits=replace(SERVER_LIMITS, connection_age=CONNECTION_AGE))
        self._local = Server(router((*remote, *local), gate))

    @classmethod
    async def build(
        cls,
        config: ServerConfig,
        stores: Stores,
        external: ExternalPlugins,
        host_services: HostServices,
        policy: Policy | None,
    ) -> _House:
        store = stores.datastore
        trust_domain = config.trust_domain
        await _check_trust_domain(store, trust_domain.name)
        authority = CertificateAuthority(
            _ca_settings(config),
            stores.key_manager,
            DatastoreAuthorities(store, trust_domain),
            upstream=await catalog.load_upstream_authority(config, external),
            composers=await catalog.load_composers(config, external),
        )
        bundles = TrustBundles(store)
        nodes = AttestedNodes(store, staleness=config.node_staleness)
        records = StoredNodeRecords(store, nodes)
        attestors, index, _ = await asyncio.gather(
            catalog.load_node_attestors(config, StoredJoinTokens(store), bundles.roots, records, external),
            EntryIndex.follow(store, trust_domain),
            authority.start(),
        )
        svid = ServerSvid(authority, trust_domain, logs.get("svid_rotator"), require_pq_kem=config.require_pq_kem)
        await svid.rotate()

        host_services.begin(Parts(trust_domain, nodes, bundles, svid))
        identities = PeerIdentities(trust_domain, config.admin_ids, bundles.roots)
        authorizer = Authorizer(identities, store, nodes, config.admin_ids, policy=policy)
        limits = server_limits(attestation=config.ratelimit_attestation, signing=config.ratelimit_signing)
        gate = Gate(authorizer, limits, logs.get("api"), audit=config.audit_log_enabled)

        following = Following(config.federation.federates_with, store, bundles, require_pq_kem=config.require_pq_kem)

        async def probe() -> str | None:
            # Asked of the datastore itself: bundles are remembered while it is away.
            return "bundle is missing" if await store.get_bundle(trust_domain) is None else None

        endpoint = await _endpoint(config, svid, bundles, stores)

        return cls(
            config,
            authority,
            svid,
            View(config, parts(store, authority, config.socket_path), svid, bundles),
            following,
            _housekeeping(config, store, nodes),
            Publishing(trust_domain, store, bundles, *await catalog.load_publishing(config, svid.identity, external)),
            remote=(
                AgentService(trust_domain, store, nodes, authority, attestors),
                BundleService(trust_domain, store, bundles, authority.authorities.publish_jwt_key),
                EntryService(trust_domain, store, index),
                TrustDomainService(trust_domain, store, bundles, following),
                LocalAuthorityService(authority.authorities),
                SvidService(
                    trust_domain,
                    index,
                    authority,
                    bundles,
                    jwt_disabled=config.disable_jwt_svids,
                    wit_svids=features.WIT_SVID in config.features,
                ),
            ),
            local=(
                HealthService(Health(probe, logs.get("health"))),
                LoggerService(),
                DebugService(trust_domain, store, lambda: svid.identity().chain),
                KeysService(_inspection(config, stores, authority, endpoint)),
            ),
            gate=gate,
            endpoint=endpoint,
        )

    async def announce(self) -> None:
        """Tell notifiers of the bundle before anybody is served by it. Raises SpireError when one refuses."""
        await self._publishing.loaded()

    async def listen(self) -> None:
        """Raises SpireError for an address that cannot be used."""
        log = logs.get("endpoints")
        config = self._config
        port = await self._remote.listen_tcp(
            config.bind_address, config.bind_port, self._svid.tls, proxies=config.proxies
        )
        if config.proxies:
            log.info("PROXY protocol enabled on TCP listener", trusted_cidrs=config.proxies)
        log.info("Starting Server APIs", network="tcp", address=f"{config.bind_address}:{port}")
        await self._local.listen_unix(config.socket_path, mode=SOCKET_MODE, strangers=True)
        log.info("Starting Server APIs", network="unix", address=config.socket_path)
        if self._endpoint is not None:
            await self._endpoint.listen()

    def tasks(self) -> Sequence[Coroutine[None, None, None]]:
        endpoints = () if self._endpoint is None else (self._endpoint,)
        running = (self._authority, self._svid, self._following, *self._housekeeping, *endpoints)
        return [*(each.run() for each in running), *self._publishing.tasks()]

    async def drain(self) -> None:
        log = logs.get("endpoints")
        log.info("Stopping Server APIs")
        draining = [self._remote.drain(GRACE), self._local.drain(GRACE)]
        if self._endpoint is not None:
            draining.append(self._endpoint.drain(GRACE))
        await asyncio.gather(*draining)
        await self._publishing.close()
        await self._authority.close()
        log.info("Server APIs have stopped")


async def _open_policy(config: ServerConfig, cleanup: AsyncExitStack) -> Policy | None:
    """Raises ConfigurationError for a policy that cannot be used: nothing is served without it."""
    if config.policy is None:
        return None
    from server.policy.rules import RegoPolicy  # few servers have one

    policy = await RegoPolicy.load(config.policy)
    cleanup.push_async_callback(policy.close)
    logs.get().info("The authorization policy decides who may call what", rego_path=config.policy.rego)
    return policy


def _housekeeping(
    config: ServerConfig, store: DataStore, nodes: AttestedNodes
) -> Sequence[Housekeeping | NodeHousekeeping]:
    found: list[Housekeeping | NodeHousekeeping] = [Housekeeping(store, logs.get("registration_manager"))]
    if config.node_pruning is not None:
        found.append(NodeHousekeeping(nodes, config.node_pruning, logs.get("node_manager")))
    return found


async def _endpoint(config: ServerConfig, svid: ServerSvid, bundles: TrustBundles, stores: Stores) -> Endpoint | None:
    """The bundle endpoint, where one is configured."""
    settings = config.federation.bundle_endpoint
    if settings is None:
        return None
    from server.federation import serving  # most servers have none, and need no HTTP for it

    return await serving.endpoint(config, settings, svid, bundles, stores.key_manager)


def _inspection(
    config: ServerConfig, stores: Stores, authority: CertificateAuthority, endpoint: Endpoint | None
) -> Inspection:
    authorities = authority.authorities
    of_authorities = uses_of(authorities)

    def uses() -> Sequence[Use]:
        return of_authorities() if endpoint is None else (*of_authorities(), *endpoint.uses())

    return Inspection(stores.key_manager, key_manager_of(config.plugins), uses, at_rest=authorities.at_rest)


def _ca_settings(config: ServerConfig) -> CaSettings:
    subject = config.ca_subject
    return CaSettings(
        trust_domain=config.trust_domain,
        ca_ttl=_seconds(config.ca_ttl),
        ca_key_type=config.ca_key_type,
        jwt_key_type=config.jwt_key_type,
        wit_key_type=config.wit_key_type,
        subject=Subject(subject.country, subject.organization, subject.common_name),
        x509_svid_ttl=_seconds(config.default_x509_svid_ttl),
        jwt_svid_ttl=_seconds(config.default_jwt_svid_ttl),
        agent_ttl=0 if config.agent_ttl is None else _seconds(config.agent_ttl),
        jwt_issuer=config.jwt_issuer,
        wit_issuer=config.wit_issuer,
        disable_jwt_svids=config.disable_jwt_svids,
        wit_svids=features.WIT_SVID in config.features,
    )


def _seconds(duration: timedelta) -> int:
    """Whole seconds, at least one."""
    return max(1, int(duration.total_seconds()))


async def _first_failure(work: Sequence[Coroutine[None, None, None]]) -> None:
    """Run until cancelled, or until one of them fails."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _check_trust_domain(store: DataStore, name: str) -> None:
    """A datastore of another trust domain is refused; SPIRE looks at one entry and one node too."""
    entries = (await store.list_entries(page_size=1)).items
    for entry in entries:
        found = SpiffeId.parse(entry.spiffe_id).trust_domain.name
        if found != name:
            raise ConfigurationError(
                f'a registration entry with trust domain "{found}" has been detected, which does not match the '
                f'configured trust domain of "{name}"; to change the trust domain, delete all registration entries'
            )
    nodes = (await store.list_nodes(page_size=1)).items
    for node in nodes:
        found = SpiffeId.parse(node.spiffe_id).trust_domain.name
        if found != name:
            logs.get().warning(
                "The datastore has an agent of another trust domain; it stays outside until it is configured anew",
                spiffe_id=node.spiffe_id,
            )


def _make_folder(path: str, mode: int, setting: str) -> None:
    try:
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise PermanentlyUnusable(f"cannot make the folder {path} of {setting}: {error.strerror}") from error
