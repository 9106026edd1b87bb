"""Which secrets a workload gets, by which names, and what is in them: FetchSecrets of a whole agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.config.file import Sds
from generated.envoy.config.core.v3 import base_pb2
from generated.spire.api.types import bundle_pb2
from identity.spiffeid import TrustDomain
from tests.simulators import envoy as sds
from tests.simulators.fake_server import Authority, FakeServer
from tests.simulators.in_process_agent import Home, RunningAgent, until
from transport.status import Code, RpcError

OWN = "spiffe://example.org"
ID = f"{OWN}/workload"
OTHER = "spiffe://other.org"


async def refusal(agent: RunningAgent, *names: str, node: base_pb2.Node | None = None) -> tuple[Code, str]:
    with pytest.raises(RpcError) as caught:
        await sds.fetch(agent.channel, *names, node=node)
    return caught.value.code, caught.value.message


def refused(*names: str) -> tuple[Code, str]:
    listed = " ".join(f'"{name}"' for name in names)
    return Code.INVALID_ARGUMENT, f"workload is not authorized for the requested identities [{listed}]"


def federate(home: Home, name: str = "other.org") -> Authority:
    authority = Authority(TrustDomain(name))
    home.server.federated[name] = bundle_pb2.Bundle(
        trust_domain=name, x509_authorities=[bundle_pb2.X509Certificate(asn1=authority.der)]
    )
    return authority


async def test_a_certificate_comes_with_its_key_and_its_chain(tmp_path: Path) -> None:
    async with FakeServer(below_upstream=True).running() as server:
        server.add_entry("a")
        async with Home(tmp_path, server).running() as agent:
            secrets = await sds.fetch(agent.channel, ID, OWN)
    assert list(secrets) == [OWN, ID]
    chain, key = sds.chain_and_key(secrets[ID])
    leaf, intermediate = x509.load_pem_x509_certificates(chain)
    assert serialization.load_pem_private_key(key, None).public_key() == leaf.public_key()
    (root,) = x509.load_pem_x509_certificates(sds.trust_domains(secrets[OWN])["example.org"])
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)


@pytest.mark.parametrize("names", [(), ("",), ("", ""), ("*",)])
async def test_no_name_means_all_by_their_own_names(home: Home, names: tuple[str, ...]) -> None:
    home.server.add_entry("b", "/second")
    home.server.add_entry("a", federates_with=["other.org", "third.org"])
    federate(home)
    federate(home, "third.org")
    async with home.running() as agent:
        secrets = await sds.fetch(agent.channel, *names)
        assert list(secrets) == [OWN, OTHER, "spiffe://third.org", ID, f"{OWN}/second"]


async def test_names_that_envoys_need_not_know(home: Home) -> None:
    home.server.add_entry("b", "/second")
    home.server.add_entry("a", federates_with=["other.org"])
    other = federate(home)
    async with home.running() as agent:
        own = home.server.authority.pem.encode()
        secrets = await sds.fetch(agent.channel, "default", "ROOTCA")
        assert list(secrets) == ["ROOTCA", "default"]
        assert sds.trust_domains(secrets["ROOTCA"]) == {"example.org": own}
        # The default SVID is the one of the lowest entry id.
        assert sds.chain_and_key(secrets["default"]) == sds.chain_and_key((await sds.fetch(agent.channel, ID))[ID])
        everybody = (await sds.fetch(agent.channel, "ALL"))["ALL"]
        assert sds.trust_domains(everybody) == {"example.org": own, "other.org": other.pem.encode()}
        assert sds.trust_domains((await sds.fetch(agent.channel, OTHER))[OTHER]) == {"other.org": other.pem.encode()}


async def test_the_names_are_the_operator_s_to_choose(home: Home) -> None:
    home.sds = Sds(default_svid_name="mine", default_bundle_name="ours", default_all_bundles_name="everybody's")
    home.server.add_entry("a")
    async with home.running() as agent:
        assert list(await sds.fetch(agent.channel, "mine", "ours")) == ["ours", "mine"]
        assert list(await sds.fetch(agent.channel, "everybody's")) == ["everybody's"]
        assert await refusal(agent, "default", "ROOTCA", "ALL") == refused("ALL", "ROOTCA", "default")


async def test_one_name_for_two_bundles_is_the_own_one_s(home: Home) -> None:
    home.sds = Sds(default_all_bundles_name="ROOTCA")
    home.server.add_entry("a", federates_with=["other.org"])
    federate(home)
    async with home.running() as agent:
        assert list(sds.trust_domains((await sds.fetch(agent.channel, "ROOTCA"))["ROOTCA"])) == ["example.org"]


@pytest.mark.parametrize(
    ("names", "strange"),
    [
        (("default", ID), "default"),
        (("ROOTCA", "ALL"), "ALL"),
        ((OWN, "ROOTCA"), "ROOTCA"),
        ((OWN, "ALL"), "ALL"),
    ],
)
async def test_a_secret_answers_to_one_of_its_names(agent: RunningAgent, names: tuple[str, ...], strange: str) -> None:
    assert await refusal(agent, *names) == refused(strange)


async def test_entries_with_the_same_id_are_one_to_who_names_it(home: Home) -> None:
    home.server.add_entry("a", hint="x")
    home.server.add_entry("b", hint="y")
    async with home.running() as agent:
        assert list(await sds.fetch(agent.channel, ID)) == [ID]


async def test_what_is_not_the_workload_s_is_refused_whole(agent: RunningAgent) -> None:
    strangers = (f"{OWN}/else", OTHER, "x\ny", "*")
    code, message = await refusal(agent, "default", "ROOTCA", *strangers)
    assert code is Code.INVALID_ARGUMENT
    assert message.endswith(rf'["*" "{OWN}/else" "{OTHER}" "x\ny"]')


async def test_a_workload_without_an_entry_gets_the_bundle_and_no_certificate(agent: RunningAgent) -> None:
    agent.attestor.selectors = ("unix:uid:2",)
    assert list(await sds.fetch(agent.channel)) == [OWN]
    assert list(await sds.fetch(agent.channel, "ROOTCA")) == ["ROOTCA"]
    assert await refusal(agent, "default") == refused("default")


@pytest.mark.parametrize(
    ("node", "disabled", "by_root_ca"),
    [
        (None, False, False),
        (None, True, True),
        (sds.envoy((1, 17)), False, True),
        (sds.envoy((1, 18)), False, False),
        (sds.envoy((0, 99)), False, True),
        (sds.envoy((2, 0)), False, False),
        (sds.envoy((2, 0)), True, True),
        (base_pb2.Node(user_agent_build_version=base_pb2.BuildVersion()), False, False),
        (sds.envoy(disable_spiffe_cert_validation=True), False, True),
        (sds.envoy(disable_spiffe_cert_validation=False), True, False),
        (sds.envoy(disable_spiffe_cert_validation="t"), False, True),
        (sds.envoy(disable_spiffe_cert_validation="FALSE"), True, False),
        (sds.envoy(disable_spiffe_cert_validation="yes"), False, False),
        (sds.envoy(disable_spiffe_cert_validation="no"), True, True),
        (sds.envoy(disable_spiffe_cert_validation=1.0), False, False),
        (sds.envoy((1, 17), disable_spiffe_cert_validation=False), False, True),
    ],
)
async def test_who_verifies_by_a_root_ca(
    home: Home, node: base_pb2.Node | None, disabled: bool, by_root_ca: bool
) -> None:
    home.sds = Sds(disable_spiffe_cert_validation=disabled)
    home.server.add_entry("a", federates_with=["other.org"])
    own, other = home.server.authority.pem.encode(), federate(home).pem.encode()
    async with home.running() as agent:
        secrets = await sds.fetch(agent.channel, "ROOTCA", OTHER, node=node)
        if not by_root_ca:
            assert sds.trust_domains(secrets["ROOTCA"]) == {"example.org": own}
            assert list(sds.trust_domains((await sds.fetch(agent.channel, "ALL", node=node))["ALL"])) == [
                "example.org",
                "other.org",
            ]
            return
        assert (sds.root_ca(secrets["ROOTCA"]), sds.root_ca(secrets[OTHER])) == (own, other)
        code, message = await refusal(agent, "ALL", node=node)
        assert code is Code.INTERNAL
        assert message.startswith('unable to use "SPIFFE validator" on Envoy below 1.17')
        assert message.endswith('ask for "ROOTCA"')


async def test_tainted_authorities_are_trusted_until_they_are_revoked(home: Home) -> None:
    home.server.add_entry("a")
    old = home.server.authority.pem
    async with home.running() as agent:
        home.server.rotate_authority()
        await until(lambda: len(agent.managing.cache.bundle.x509_authorities) == 2)
        bundle = sds.trust_domains((await sds.fetch(agent.channel, "ROOTCA"))["ROOTCA"])["example.org"].decode()
        assert bundle == home.server.authority.pem + old


async def test_a_single_request_waits_for_svids_that_are_still_to_come(home: Home) -> None:
    home.server.refused_entries.add("a")
    home.server.add_entry("a")
    async with home.running() as agent, sds.secret_stream(agent.channel) as other:
        asked = asyncio.ensure_future(sds.fetch(agent.channel, "default"))
        assert await sds.nothing_came(agent, other.stream)
        assert not asked.done()
        home.server.refused_entries.clear()
        while not asked.done():  # a refusal that is under way is followed by a pause
            agent.managing.cache.renew_now(["a"])
            await asyncio.sleep(0.05)
        assert list(await asked) == ["default"]


async def test_a_caller_that_cannot_be_attested_is_told_to_come_again(
    agent: RunningAgent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.attestor.selectors = ("nonsense",)
    assert await refusal(agent, "default") == (Code.UNAVAILABLE, "workload attestation failed")
    assert "Failed to attest the workload" in caplog.messages
