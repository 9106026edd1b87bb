"""The serving half of SPIRE's plugin protocol (hashicorp/go-plugin's gRPC form): a program of ours as another's plugin.

`plugins.external` is the hosting half. Both speak over `transport`; no other gRPC library is loaded.
"""
