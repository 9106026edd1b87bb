"""External plugins: programs of their own that speak SPIRE's plugin protocol (hashicorp/go-plugin's gRPC form).

They reach us over plain Unix sockets, as from SPIRE's own host, which has go-plugin's AutoMTLS off; transport/ carries
that, and no other gRPC library is loaded. Nothing here is imported unless a configuration has a `plugin_cmd`.
"""
