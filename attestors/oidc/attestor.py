"""WorkloadAttestor "oidc_attestor": what the issuer of a workload's token says of the workload."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attestors import processes
from attestors.containers import locator
from attestors.oidc import binding, claims, tokens, verifier
from attestors.oidc.binding import Caller
from attestors.oidc.configuration import Configuration
from attestors.oidc.issuer_keys import IssuerKeys
from attestors.oidc.jwks import UnknownKey
from attestors.oidc.verifier import Token, Verified
from attestors.sigstore.http import HttpClient
from attestors.threads import Threads
from identity.selectors import Selector
from operations.errors import InvalidArgument, Refused
from operations.quoting import quote
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "oidc_attestor"

_THREADS = 32
_OF_A_USER = 2


class OidcAttestor:
    """Selectors `iss`, `sub`, `aud` and `claim:<path>`; none for a process without a token."""

    name = NAME

    def __init__(self, configuration: Configuration, context: PluginContext) -> None:
        self._configuration = configuration
        # A process may have a file system of its own making, which answers when it likes.
        self._readers = Threads("oidc-attestor", most=_THREADS, each=_OF_A_USER)
        self._clients: list[HttpClient] = []
        self._keys: dict[str, IssuerKeys] = {}
        for name, issuer in configuration.issuers.items():
            http = HttpClient(os.environ, issuer.tls if issuer.ca_path else None)
            self._clients.append(http)
            self._keys[name] = IssuerKeys(name, issuer, http, context.log)

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises Refused for a token that does not hold or is another's, and other SpireError classes."""
        text = await self._readers.run(process.uid, lambda: self._token(process.pid))
        processes.require_same(process)
        if text is None:
            return ()
        try:
            token = verifier.read(text)
        except InvalidArgument as error:
            raise Refused(f"the token of process {process.pid} cannot be read: {error}") from error
        verified = await self._verified(token)
        await self._require_own(verified, process)
        return self._selectors(verified)

    def _token(self, pid: int) -> str | None:
        settings = self._configuration
        found = tokens.from_file(pid, settings.token_path) if settings.token_path else None
        if found is None and settings.token_env:
            found = tokens.from_environment(pid, settings.token_env)
        return found

    async def _verified(self, token: Token) -> Verified:
        issuer = self._configuration.issuers.get(token.issuer)
        if issuer is None:
            raise Refused(f"the token's issuer {quote(token.issuer[:200])} is not among the configured ones")
        if token.algorithm not in issuer.algorithms:  # before anybody is asked for keys
            raise Refused(f"the token is signed with {quote(token.algorithm[:20])}, which its issuer may not")
        keys = self._keys[token.issuer]
        try:
            return verifier.verify(token, issuer, await keys.get(), time.time())
        except UnknownKey:
            return verifier.verify(token, issuer, await keys.newer(), time.time())

    async def _require_own(self, verified: Verified, process: Process) -> None:
        pod_uid = ""
        if binding.names_pod(verified.claims):
            found = await self._readers.run(process.uid, lambda: locator.locate(process.pid))
            pod_uid = found.pod_uid
        # Last: a pid that is still the same process's has been so all the time.
        processes.require_same(process)
        issuer = self._configuration.issuers[verified.issuer]
        binding.require_bound(verified.claims, issuer, Caller(process.uid, pod_uid))

    def _selectors(self, verified: Verified) -> Sequence[Selector]:
        issuer = self._configuration.issuers[verified.issuer]
        found = [f"iss:{verified.issuer}", f"sub:{verified.subject}"]
        found += [f"aud:{each}" for each in claims.values({"aud": list(verified.audiences)}, "aud")]
        for path in issuer.claims:
            found += [f"claim:{path}:{value}" for value in claims.values(verified.claims, path)]
        return [Selector(NAME, value) for value in dict.fromkeys(found)]

    async def close(self) -> None:
        for keys in self._keys.values():
            await keys.close()
        for client in self._clients:
            client.close()


async def load(configuration: Configuration, context: PluginContext) -> OidcAttestor:
    """Raises ConfigurationError for CAs that cannot be used."""
    await asyncio.to_thread(configuration.check_files)
    processes.require_own_proc()
    return OidcAttestor(configuration, context)
