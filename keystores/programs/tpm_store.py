"""KeyManager "tpm" as it is served, and what is checked of its settings before a TPM is asked."""

from __future__ import annotations

from typing import ClassVar, cast

import msgspec

from keystores import state
from keystores.served import Role, need_keys_path
from keystores.tpm import configuration as settings
from keystores.tpm import manager
from plugins.context import PluginContext
from plugins.keymanager import KeyManager


class Tpm:
    """A `keystores.served.KeyStore`."""

    name: ClassVar[str] = "tpm"
    model: ClassVar[type[msgspec.Struct]] = settings.Configuration

    def check(self, configuration: msgspec.Struct) -> None:
        configured = cast(settings.Configuration, configuration)
        settings.tcti(configured.tcti)
        settings.parent(configured.parent)
        settings.pcrs(configured.pcrs)
        state.grace(configured.grace)
        need_keys_path(configured.keys_path, self.name)

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        load = manager.load_server if role is Role.SERVER else manager.load_agent
        return await load(cast(settings.Configuration, configuration), context)
