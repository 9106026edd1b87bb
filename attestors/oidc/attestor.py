"""WorkloadAttestor `oidc_attestor`: selectors from the token that a process has of an issuer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from attestors import processes
from attestors.containers import locator
from attestors.oidc import fetching, possession, tokens
from attestors.oidc.configuration import POD_UID, Configuration, Issuer
from attestors.oidc.keys import KeySet
from attestors.threads import Threads
from identity.selectors import Selector
from operations.errors import Refused
from operations.quoting import quote
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "oidc_attestor"

_READERS = 16
_OF_A_USER = 4


class OidcAttestor:
    """Selectors `iss`, `sub`, `aud` and `claim`; none for a process without a token."""

    name = NAME

    def __init__(self, configuration: Configuration, key_sets: Mapping[str, KeySet]) -> None:
        self._configuration = configuration
        self._key_sets = key_sets
        self._threads = Threads("oidc-token", most=_READERS, each=_OF_A_USER)
        self._locators = locator.Workers()

    async def close(self) -> None:
        self._locators.close()
        for each in self._key_sets.values():
            await each.close()

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises InvalidArgument and Refused for a token that does not count, TemporarilyUnavailable without keys."""
        settings = self._configuration
        token = await self._threads.run(
            process.uid, partial(possession.token_of, process, settings.token_path, settings.token_env)
        )
        processes.require_running(process)
        if token is None:
            return ()
        issuer, claims = await self._verified(token)
        await self._require_bound(process, issuer, claims)
        return [Selector(NAME, value) for value in tokens.selector_values(claims, issuer)]

    async def _verified(self, token: str) -> tuple[Issuer, Mapping[str, Any]]:
        seen = tokens.look(token)
        issuer = self._configuration.issuers.get(seen.issuer)
        if issuer is None:
            raise Refused(f"the token is of {quote(seen.issuer)}, which is none of the issuers that are set")
        keys = await self._key_sets[seen.issuer].find(seen.key_id)
        return issuer, tokens.verify(token, seen.issuer, issuer, keys, time.time())

    async def _require_bound(self, process: Process, issuer: Issuer, claims: Mapping[str, Any]) -> None:
        """Raise Refused for a token that was made for another process, as far as its issuer says for which."""
        binding = dict(issuer.binding)
        if "pod_uid" not in binding and list(tokens.texts(claims, POD_UID)):
            binding["pod_uid"] = POD_UID
        if not binding:
            return
        facts = await self._facts(process, binding)
        for fact, path in binding.items():
            said = list(tokens.texts(claims, path))
            if not facts[fact] or said != [facts[fact]]:
                raise Refused(
                    f"the token is bound to {fact} {quote(', '.join(said))} by its claim {path}, and process "
                    f"{process.pid} has {quote(facts[fact])}"
                )

    async def _facts(self, process: Process, binding: Mapping[str, str]) -> Mapping[str, str]:
        place = locator.NOWHERE
        if not binding.keys().isdisjoint(("pod_uid", "container_id")):
            place = await self._locators.ask(process, locator.locate)
        return {
            "pid": str(process.pid),
            "uid": str(process.uid),
            "gid": str(process.gid),
            "pod_uid": place.pod_uid,
            "container_id": place.container_id,
        }


async def load(configuration: Configuration, context: PluginContext) -> WorkloadAttestor:
    """Raises ConfigurationError for CA files that cannot be used, and in another PID namespace than /proc's.

    No issuer is asked yet.
    """
    await asyncio.to_thread(configuration.check_files)
    processes.require_own_proc()
    key_sets: dict[str, KeySet] = {}
    for name, issuer in configuration.issuers.items():
        http = fetching.client(name, issuer.ca_path)
        key_sets[name] = KeySet(name, partial(fetching.fetch, name, issuer.jwks_url, http), http.close)
    context.log.debug("Tokens are taken of these issuers", issuers=", ".join(key_sets))
    return OidcAttestor(configuration, key_sets)
