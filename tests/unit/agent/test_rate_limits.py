from __future__ import annotations

import asyncio

import pytest

from agent.config.file import RateLimit
from agent.rate_limits import Buckets, RateLimits
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from identity.selectors import Selector
from operations import metrics
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent
from transport.status import Code, RpcError

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
STREAM_SECRETS = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector("unix", each) for each in texts)


def test_a_bucket_holds_what_comes_in_a_second() -> None:
    clock = Clock()
    buckets = Buckets(3, clock=clock)
    assert [buckets.take(b"a") for _ in range(5)] == [True, True, True, False, False]
    assert buckets.take(b"b"), "another caller has a bucket of its own"
    clock.now += 0.4
    assert [buckets.take(b"a") for _ in range(2)] == [True, False]
    clock.now += 100
    assert [buckets.take(b"a") for _ in range(4)] == [True, True, True, False]


def test_buckets_that_are_full_again_are_forgotten_and_the_table_is_bounded() -> None:
    clock = Clock()
    buckets = Buckets(1, size=50, clock=clock)
    for number in range(100):
        buckets.take(str(number).encode())
    assert len(buckets) == 50
    clock.now += 1
    assert buckets.take(b"99")
    assert len(buckets) == 1


def test_a_caller_is_its_selectors_in_whatever_order() -> None:
    limits = RateLimits(RateLimit(stream_secrets=1), clock=Clock())
    limits.check(STREAM_SECRETS, selectors("uid:1", "gid:1"))
    with pytest.raises(RpcError) as caught:
        limits.check(STREAM_SECRETS, sorted(selectors("gid:1", "uid:1")))
    assert (caught.value.code, caught.value.message) == (
        Code.UNAVAILABLE,
        f"rate limit exceeded for {STREAM_SECRETS}",
    )
    limits.check(STREAM_SECRETS, selectors("uid:1"))
    limits.check(STREAM_SECRETS, selectors("path:/\udcff"))
    limits.check(STREAM_SECRETS, selectors())
    with pytest.raises(RpcError):
        limits.check(STREAM_SECRETS, selectors())


@pytest.mark.parametrize("limits", [RateLimit(), RateLimit(fetch_jwt_svid=1)])
def test_a_method_without_a_limit_has_none(limits: RateLimit) -> None:
    made = RateLimits(limits, clock=Clock())
    for _ in range(100):
        made.check(STREAM_SECRETS, selectors("uid:1"))


class Counters:
    def __init__(self) -> None:
        self.counted: list[tuple[metrics.Key, metrics.Labels]] = []

    def count(self, key: metrics.Key, by: float, labels: metrics.Labels) -> None:
        self.counted.append((key, labels))

    def gauge(self, key: metrics.Key, value: float, labels: metrics.Labels) -> None:
        pass

    def sample(self, key: metrics.Key, value: float, labels: metrics.Labels) -> None:
        pass


def test_refusals_are_counted() -> None:
    counters, before = Counters(), metrics.emitters()
    metrics.use([counters])
    try:
        limits = RateLimits(RateLimit(fetch_x509_svid=1), clock=Clock())
        limits.check("/SpiffeWorkloadAPI/FetchX509SVID", ())
        assert not counters.counted
        with pytest.raises(RpcError):
            limits.check("/SpiffeWorkloadAPI/FetchX509SVID", ())
    finally:
        metrics.use(before)
    labels = (("method", "/SpiffeWorkloadAPI/FetchX509SVID"),)
    assert counters.counted == [(("workload_api", "rate_limit_exceeded"), labels)]


async def test_a_workload_that_calls_too_often_is_told_and_then_served_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.server.add_entry("a")
    home.ratelimit = RateLimit(fetch_x509_svid=2)
    # The test is in the agent's own process, which is exempt.
    monkeypatch.setattr("agent.rate_limits.getpid", lambda: 0)
    async with home.running() as agent:
        codes = [await outcome(agent) for _ in range(20)]
        assert Code.UNAVAILABLE in codes
        bundles = ("FetchX509Bundles", workload_pb2.X509BundlesRequest(), workload_pb2.X509BundlesResponse)
        for _ in range(20):
            await agent.first(*bundles)
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.sleep(0.1)
                if await outcome(agent) is Code.OK:
                    break


async def outcome(agent: RunningAgent) -> Code:
    try:
        await agent.first(*X509)
    except RpcError as error:
        return error.code
    return Code.OK


async def test_the_agents_own_calls_are_not_counted(home: Home) -> None:
    home.ratelimit = RateLimit(fetch_x509_svid=1)
    async with home.running() as agent:
        for _ in range(5):
            answer = await agent.channel.unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest(),
                health_pb2.HealthCheckResponse,
                timeout=PATIENCE,
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
