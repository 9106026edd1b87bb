"""KeyManager "pkcs11" as it is served, and what is checked of its settings before a token is asked."""

from __future__ import annotations

from typing import ClassVar, cast

import msgspec

from keystores import state
from keystores.pkcs11 import configuration as settings
from keystores.pkcs11 import manager
from keystores.served import Role, need_keys_path
from plugins.context import PluginContext
from plugins.keymanager import KeyManager


class Pkcs11:
    """A `keystores.served.KeyStore`."""

    name: ClassVar[str] = "pkcs11"
    model: ClassVar[type[msgspec.Struct]] = settings.Configuration

    def check(self, configuration: msgspec.Struct) -> None:
        configured = cast(settings.Configuration, configuration)
        for token in (configured, *(settings.clone(configured, name) for name in configured.clone)):
            settings.token_spec(token)
        settings.namespace(configured, Role.SERVER.value)
        state.grace(configured.grace)
        need_keys_path(configured.keys_path, self.name)

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        load = manager.load_server if role is Role.SERVER else manager.load_agent
        return await load(cast(settings.Configuration, configuration), context)
