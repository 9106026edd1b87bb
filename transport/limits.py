"""What a peer may make us hold or wait for."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one listener or channel. Sizes in bytes, times in seconds.

    `message` is the largest message received, 4 MiB as in grpc-go. `headers` is one header list as RFC 9113 counts
    it (section 6.5.2). `stream_window` is what may wait unread on a stream beyond one unfinished message,
    `send_buffer` what a handler may be ahead of the peer, beyond one message. `unread` is what all streams of one
    connection may hold together. `handshake` covers TLS and the HTTP/2 preface. A server ends a connection gracefully
    after `connection_age`. `write_buffer` is how much of what was framed may wait for the peer to read, beyond 128 KiB,
    before no more is framed. `keepalive` is the silence after which a connection is pinged and `keepalive_timeout` how
    long the answer may take; None turns pings off. A client pings only while it has calls, and not more often than
    every five minutes: grpc-go's servers end connections that ping more. `control_frames`, besides two for each
    stream, may wait for a peer that does not read. `read` is how much is read of a connection before others have
    their turn.

    `connections` is of a whole listener. Processes that call over a Unix socket share it out among them, and with it
    `calls` and `received`, the bytes of requests that are being received or wait to be read (transport.shares).
    """

    message: int = 4 * MIB
    headers: int = 16 * KIB
    streams: int = 256
    stream_window: int = 256 * KIB
    connection_window: int = 4 * MIB
    send_buffer: int = 64 * KIB
    write_buffer: int = 256 * KIB
    read: int = 64 * KIB
    unread: int = 64 * MIB
    connections: int = 10_000
    handshake: float = 10.0
    connection_age: float | None = None
    keepalive: float | None = None
    keepalive_timeout: float = 20.0
    control_frames: int = 10_000
    calls: int = 20_000
    received: int = 256 * MIB


SERVER_LIMITS = Limits(keepalive=7200.0)
CLIENT_LIMITS = Limits(stream_window=MIB, keepalive=310.0)
