"""Proof of a host's name by HTTP: the server asks the host for what it told the agent. Agent half, server half."""
