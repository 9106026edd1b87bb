"""HTTP/1.1 to services of others: what they may answer, and what they may not do to us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from operations.errors import InvalidArgument, TemporarilyUnavailable
from transport.http_client import NoAnswer, Query, Service, TooLarge, asking

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def answering(
    *parts: bytes, endless: bytes = b"", hold: bool = False
) -> AsyncGenerator[tuple[Service, list[bytes]]]:
    """A service that sends these bytes whatever it is asked, and its requests."""
    asked: list[bytes] = []
    closing = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.read(65536))
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            while endless:
                writer.write(endless)
                await writer.drain()
            if hold:
                await closing.wait()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield Service("127.0.0.1", server.sockets[0].getsockname()[1]), asked
    finally:
        closing.set()
        server.close()
        await server.wait_closed()


async def body(service: Service, query: Query | None = None, *, largest: int = 1 << 20) -> tuple[int, bytes]:
    async with asyncio.timeout(30), asking(service, query or Query("/")) as answer:
        return answer.status, await answer.body(largest)


async def test_a_request_as_it_is_sent() -> None:
    async with answering(OK + b"Content-Length: 2\r\n\r\nhi") as (service, asked):
        query = Query("/a?b=c", "POST", {"X-Mine": "1"}, b"{}")
        assert await body(service, query) == (200, b"hi")
    head, _, sent = asked[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /a?b=c HTTP/1.1"
    assert f"Host: 127.0.0.1:{service.port}" in lines
    assert {"Connection: close", "X-Mine: 1", "Content-Length: 2"} <= set(lines)
    assert sent == b"{}"


@pytest.mark.parametrize("value", ["s3cret\r\nX-Other: 1", "s3cret\0", "s3cr€t"])
async def test_a_request_that_is_none_is_not_sent_and_not_shown(value: str) -> None:
    async with answering(OK) as (service, _):
        with pytest.raises(InvalidArgument, match=f"{service.url}/: a header or the path has") as refusal:
            await body(service, Query("/", headers={"Authorization": value}))
        assert "s3cr" not in str(refusal.value)
        with pytest.raises(InvalidArgument):
            await body(service, Query("/a b"))


async def test_a_header_that_comes_several_times() -> None:
    async with (
        answering(OK + b"X-Some: a\r\nx-some: b\r\nContent-Length: 0\r\n\r\n") as (service, _),
        asyncio.timeout(30),
        asking(service, Query("/")) as answer,
    ):
        assert answer.fields[:2] == [("x-some", "a"), ("x-some", "b")]
        assert answer.headers["x-some"] == "b"


BODIES = {
    "of a known length": (OK + b"Content-Length: 5\r\n\r\nhello",),
    "in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"),
    "until the end": (OK + b"\r\n", b"hel", b"lo"),
    "after something preliminary": (b"HTTP/1.1 103 Early Hints\r\n\r\n", OK + b"Content-Length: 5\r\n\r\nhello"),
    "byte by byte": tuple(bytes((byte,)) for byte in OK + b"Content-Length: 5\r\n\r\nhello"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies(name: str) -> None:
    async with answering(*BODIES[name]) as (service, _):
        assert await body(service) == (200, b"hello")


BROKEN = {
    "nothing": (b"", "connection closed before the answer"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "illegal|status line"),
    "cut short": (OK + b"Content-Length: 5\r\n\r\nhel", "peer closed connection"),
    "cut short in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "peer closed connection"),
    "two lengths": (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "Content-Length"),
    "more than it says": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "illegal chunk header"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answers(name: str) -> None:
    content, reason = BROKEN[name]
    async with answering(content) as (service, _):
        with pytest.raises(NoAnswer, match=f"{service.url}/: .*({reason})") as refusal:
            await body(service)
        assert str(refusal.value) == f"{service.url}/: {refusal.value.reason}"


async def test_a_body_without_end() -> None:
    async with answering(OK + b"\r\n", endless=b"x" * 65536) as (service, _):
        with pytest.raises(TooLarge, match="the answer is larger than 100000 bytes"):
            await body(service, largest=100_000)


async def test_a_head_without_end() -> None:
    async with answering(OK, endless=b"X-Header: " + b"x" * 10_000 + b"\r\n") as (service, _):
        with pytest.raises(TemporarilyUnavailable, match="too long"):
            await body(service)


async def test_interim_answers_without_end_take_no_memory_and_end_with_the_deadline() -> None:
    async with answering(endless=b"HTTP/1.1 100 Continue\r\n\r\n") as (service, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), asking(service, Query("/")):
                pass


async def test_the_beginning_of_a_long_complaint() -> None:
    async with (
        answering(b"HTTP/1.1 500 Oops\r\n\r\n", endless=b"no " * 10_000) as (service, _),
        asyncio.timeout(30),
        asking(service, Query("/")) as answer,
    ):
        assert answer.status == 500
        assert await answer.beginning(7) == b"no no n"


async def test_one_that_hangs_ends_with_the_deadline() -> None:
    for parts in ((), (OK,), (OK + b"Content-Length: 5\r\n\r\nhel",)):
        async with answering(*parts, hold=True) as (service, _):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), asking(service, Query("/")) as answer:
                    await answer.body(100)


async def test_names_that_are_none() -> None:
    for host, reason in (("a..b", "label|encod"), ("x" * 70, "label|encod")):
        with pytest.raises(TemporarilyUnavailable, match=reason):
            await body(Service(host, 1))


def test_an_address_of_ipv6() -> None:
    assert Service("::1", 10250).url == "http://[::1]:10250"
