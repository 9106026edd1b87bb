"""The key stores that are served, with what they check before a device is asked."""

from __future__ import annotations

from typing import Final, cast

import msgspec

from keystores.served import Role
from operations.errors import ConfigurationError
from plugins.context import PluginContext
from plugins.keymanager import KeyManager


class Pkcs11:
    name: Final = "pkcs11"

    def __init__(self) -> None:
        from keystores.pkcs11.configuration import Configuration

        self.model: Final[type[msgspec.Struct]] = Configuration

    def check(self, configuration: msgspec.Struct) -> None:
        from keystores.pkcs11 import configuration as settings

        configured = cast(settings.Configuration, configuration)
        settings.token_name(configured)
        settings.namespace(configured, Role.SERVER.value)
        settings.grace(configured)
        _need_keys_path(configured.keys_path, self.name)

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        from keystores.pkcs11 import configuration as settings
        from keystores.pkcs11 import manager

        load = manager.load_server if role is Role.SERVER else manager.load_agent
        return await load(cast(settings.Configuration, configuration), context)


def _need_keys_path(path: str | None, name: str) -> None:
    """A plugin is not told its host's data_dir, from which built-in key managers take it."""
    if not path:
        raise ConfigurationError(
            f"{name}: keys_path must be configured: a plugin does not know the data_dir of its server or agent"
        )


class Tpm:
    name: Final = "tpm"

    def __init__(self) -> None:
        from keystores.tpm.configuration import Configuration

        self.model: Final[type[msgspec.Struct]] = Configuration

    def check(self, configuration: msgspec.Struct) -> None:
        from keystores.tpm import configuration as settings

        _need_keys_path(cast(settings.Configuration, configuration).keys_path, self.name)

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        from keystores.tpm import configuration as settings
        from keystores.tpm import manager

        load = manager.load_server if role is Role.SERVER else manager.load_agent
        return await load(cast(settings.Configuration, configuration), context)
