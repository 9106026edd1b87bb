"""gRPC over SPIFFE mutual TLS and over Unix sockets that know their caller, on libnghttp2 and pyOpenSSL."""
