"""The server's configuration: file, command line, defaults, checks."""

from server.config.command_line import declare_flags
from server.config.datastore import DataStoreConfiguration
from server.config.file import CaSubject
from server.config.settings import Overrides, ServerConfig, load

__all__ = ["CaSubject", "DataStoreConfiguration", "Overrides", "ServerConfig", "declare_flags", "load"]
