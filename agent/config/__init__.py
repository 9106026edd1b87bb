"""The agent's configuration: file, command line, defaults, checks."""

from agent.config.command_line import declare_flags
from agent.config.settings import AgentConfig, Overrides, load

__all__ = ["AgentConfig", "Overrides", "declare_flags", "load"]
