"""An external plugin on grpcio, good or bad, as a program of its own: `python -m tests.simulators.plugin WORD…`.

Without words it serves plugins of every type, for servers and agents, in the way of hashicorp/go-plugin, with a
KeyManager in memory. Each word makes it misbehave in one way; see `WORDS`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from generated.plugin import grpc_broker_pb2, grpc_controller_pb2
from generated.spire.plugin.agent.keymanager.v1 import keymanager_pb2 as agent_keymanager_pb2
from generated.spire.plugin.agent.nodeattestor.v1 import nodeattestor_pb2 as agent_nodeattestor_pb2
from generated.spire.plugin.agent.svidstore.v1 import svidstore_pb2
from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2
from generated.spire.plugin.server.bundlepublisher.v1 import bundlepublisher_pb2
from generated.spire.plugin.server.keymanager.v1 import keymanager_pb2
from generated.spire.plugin.server.nodeattestor.v1 import nodeattestor_pb2
from generated.spire.plugin.server.notifier.v1 import notifier_pb2
from generated.spire.service.common.config.v1 import config_pb2
from generated.spire.service.private.init.v1 import init_pb2
from tests.simulators import plugin_authorities
from tests.simulators.plugin_authorities import ComposerHalf, UpstreamHalf

WORDS: Final = frozenset(
    {
        # before the handshake
        "silent", "dies-at-once", "leaves-child", "leaves-daemon", "long-line", "no-handshake",
        # around it
        "tcp", "floods", "panics", "stays", "no-controller", "no-broker",
        # when it is told things
        "dies-in-init", "hangs-in-init", "dies-in-configure", "hangs-in-configure", "refuses", "without-config",
        # as a key manager
        "wrong-id", "no-key", "no-pkix", "bad-pkix", "wrong-type", "empty-signature", "wrong-fingerprint",
        "wrong-signature", "oversize", "dies-in-sign", "hangs-in-sign", "fails-in-sign", "foreign-key",
        # as an attestor
        "closes", "says-nothing", "no-agent-id", "no-payload", "no-response", "dies-in-attest", "hangs-in-attest",
        "lacks-permission", "many-challenges",
        # as a publisher or notifier
        "dies-in-publish", "hangs-in-publish", "fails-in-publish",
        "most-selectors", "more-selectors", "flood-of-selectors", "odd-selectors", "no-utf8-selectors",
    }
    | plugin_authorities.WORDS
)  # fmt: skip

_HASHES: Final = {5: hashes.SHA256(), 6: hashes.SHA384(), 7: hashes.SHA512()}
_SIZE: Final = 17 << 20


class Failure(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Plugin:
    def __init__(self, words: frozenset[str]) -> None:
        self.words = words
        self.keys: dict[str, tuple[Any, keymanager_pb2.KeyType.ValueType, str]] = {}
        self.stored: dict[str, Message] = {}
        self.count = 0
        self.ended = asyncio.Event()

    def does(self, word: str) -> bool:
        assert word in WORDS
        return word in self.words

    async def misbehave(self, place: str) -> None:
        if self.does(f"dies-in-{place}"):
            os._exit(9)
        if self.does(f"hangs-in-{place}"):
            await asyncio.sleep(3600)

    # What every plugin serves.

    async def init(self, _request: init_pb2.InitRequest) -> init_pb2.InitResponse:
        await self.misbehave("init")
        names = [service.full_name for service in self.services() if not service.full_name.startswith("plugin.")]
        return init_pb2.InitResponse(plugin_service_names=names)

    async def deinit(self, _request: init_pb2.DeinitRequest) -> init_pb2.DeinitResponse:
        print("[INFO] deinitialized", file=sys.stderr, flush=True)
        return init_pb2.DeinitResponse()

    async def configure(self, request: config_pb2.ConfigureRequest) -> config_pb2.ConfigureResponse:
        await self.misbehave("configure")
        if self.does("refuses") or "refuse" in request.hcl_configuration:
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "this configuration is refused")
        text = f"{request.core_configuration.trust_domain} {request.hcl_configuration}"
        print(f"[INFO] configured {text!r}", file=sys.stderr, flush=True)
        return config_pb2.ConfigureResponse()

    async def validate(self, request: config_pb2.ValidateRequest) -> config_pb2.ValidateResponse:
        if "refuse" in request.hcl_configuration:
            return config_pb2.ValidateResponse(valid=False, notes=["it says refuse"])
        return config_pb2.ValidateResponse(valid=True)

    async def shutdown(self, _request: Message) -> grpc_controller_pb2.Empty:
        if not self.does("stays"):
            self.ended.set()
        return grpc_controller_pb2.Empty()

    async def broker(self, requests: AsyncIterator[Message]) -> AsyncIterator[grpc_broker_pb2.ConnInfo]:
        async for request in requests:
            print(f"[INFO] host services at {request}".replace("\n", " "), file=sys.stderr, flush=True)
        for nothing in tuple[grpc_broker_pb2.ConnInfo, ...]():
            yield nothing

    # KeyManager

    def public_key(self, key_id: str) -> keymanager_pb2.PublicKey | None:
        if key_id not in self.keys or self.does("no-key"):
            return None
        key, key_type, fingerprint = self.keys[key_id]
        pkix = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return keymanager_pb2.PublicKey(
            id="another" if self.does("wrong-id") else key_id,
            type=key_type,
            pkix_data=b"" if self.does("no-pkix") else b"no key" if self.does("bad-pkix") else pkix,
            fingerprint=fingerprint,
        )

    async def generate_key(self, request: keymanager_pb2.GenerateKeyRequest) -> keymanager_pb2.GenerateKeyResponse:
        key_type = keymanager_pb2.EC_P384 if self.does("wrong-type") else request.key_type
        self.count += 1
        key: Any
        if key_type in (keymanager_pb2.EC_P256, keymanager_pb2.EC_P384):
            key = ec.generate_private_key(ec.SECP256R1() if key_type == keymanager_pb2.EC_P256 else ec.SECP384R1())
        else:
            size = 2048 if key_type == keymanager_pb2.RSA_2048 else 4096
            key = await asyncio.to_thread(rsa.generate_private_key, 65537, size)
        self.keys[request.key_id] = (key, key_type, f"fingerprint {self.count}")
        return keymanager_pb2.GenerateKeyResponse(public_key=self.public_key(request.key_id))

    async def get_public_key(self, request: keymanager_pb2.GetPublicKeyRequest) -> keymanager_pb2.GetPublicKeyResponse:
        return keymanager_pb2.GetPublicKeyResponse(public_key=self.public_key(request.key_id))

    async def get_public_keys(self, _request: Message) -> keymanager_pb2.GetPublicKeysResponse:
        if self.does("oversize"):
            return keymanager_pb2.GetPublicKeysResponse(
                public_keys=[keymanager_pb2.PublicKey(id="big", pkix_data=bytes(_SIZE))]
            )
        if self.does("foreign-key"):
            self.keys["foreign"] = (ed25519.Ed25519PrivateKey.generate(), keymanager_pb2.UNSPECIFIED_KEY_TYPE, "")
        return keymanager_pb2.GetPublicKeysResponse(
            public_keys=[key for key_id in self.keys if (key := self.public_key(key_id)) is not None]
        )

    async def sign_data(self, request: keymanager_pb2.SignDataRequest) -> keymanager_pb2.SignDataResponse:
        await self.misbehave("sign")
        if self.does("fails-in-sign"):
            raise Failure(grpc.StatusCode.UNAVAILABLE, "the device is away")
        if request.key_id not in self.keys:
            raise Failure(grpc.StatusCode.NOT_FOUND, "no such key")
        key, _, fingerprint = self.keys[request.key_id]
        data = bytes(len(request.data)) if self.does("wrong-signature") else request.data
        return keymanager_pb2.SignDataResponse(
            signature=b"" if self.does("empty-signature") else _sign(key, request, data),
            key_fingerprint="another" if self.does("wrong-fingerprint") else fingerprint,
        )

    # NodeAttestor

    async def attest(
        self, requests: AsyncIterator[nodeattestor_pb2.AttestRequest]
    ) -> AsyncIterator[nodeattestor_pb2.AttestResponse]:
        first = await anext(requests)
        await self.misbehave("attest")
        if self.does("closes"):
            return
        if self.does("lacks-permission"):
            raise Failure(grpc.StatusCode.PERMISSION_DENIED, "this node is not welcome")
        if self.does("says-nothing"):
            yield nodeattestor_pb2.AttestResponse()
        for number in range(1000 if self.does("many-challenges") else 1):
            yield nodeattestor_pb2.AttestResponse(challenge=b"challenge %d" % number)
            await anext(requests)
        yield nodeattestor_pb2.AttestResponse(
            agent_attributes=nodeattestor_pb2.AgentAttributes(
                spiffe_id="" if self.does("no-agent-id") else f"spiffe://example.org/{first.payload.decode()}",
                selector_values=["one", "two"],
                can_reattest=True,
            )
        )

    async def aid_attestation(
        self, requests: AsyncIterator[agent_nodeattestor_pb2.Challenge]
    ) -> AsyncIterator[agent_nodeattestor_pb2.PayloadOrChallengeResponse]:
        await self.misbehave("attest")
        if self.does("closes"):
            return
        yield agent_nodeattestor_pb2.PayloadOrChallengeResponse(payload=b"" if self.does("no-payload") else b"payload")
        try:
            async for request in requests:
                response = b"" if self.does("no-response") else b"response to " + request.challenge
                yield agent_nodeattestor_pb2.PayloadOrChallengeResponse(challenge_response=response)
        finally:
            print("[INFO] attestation ended", file=sys.stderr, flush=True)

    # WorkloadAttestor and SVIDStore

    async def attest_workload(
        self, request: workloadattestor_pb2.AttestRequest
    ) -> workloadattestor_pb2.AttestResponse | bytes:
        await self.misbehave("attest")
        if self.does("no-utf8-selectors"):
            return b"\x0a\x02\xff\xfe"
        if self.does("flood-of-selectors"):
            return b"\x0a\x00" * (4 << 20)
        values = [f"pid:{request.pid}"]
        if self.does("most-selectors"):
            values = [str(each) for each in range(10_000)]
        elif self.does("more-selectors"):
            values = [""] * 10_001
        elif self.does("odd-selectors"):
            values = ["", ":", "a\0b", "two\nlines", 'quoted" level=info', "ü\u202e", "x" * 1_000_000]
        return workloadattestor_pb2.AttestResponse(selector_values=values)

    async def put(self, request: svidstore_pb2.PutX509SVIDRequest) -> svidstore_pb2.PutX509SVIDResponse:
        self.stored[",".join(request.metadata)] = request
        print(f"[INFO] put {request.svid.spiffeID} {sorted(request.federated_bundles)}", file=sys.stderr, flush=True)
        return svidstore_pb2.PutX509SVIDResponse()

    async def delete(self, request: svidstore_pb2.DeleteX509SVIDRequest) -> svidstore_pb2.DeleteX509SVIDResponse:
        if self.stored.pop(",".join(request.metadata), None) is None:
            raise Failure(grpc.StatusCode.NOT_FOUND, "nothing is stored there")
        return svidstore_pb2.DeleteX509SVIDResponse()

    # BundlePublisher and Notifier

    async def told(self, what: str, bundle: Any) -> None:
        await self.misbehave("publish")
        if self.does("fails-in-publish"):
            raise Failure(grpc.StatusCode.PERMISSION_DENIED, "the bucket is not ours")
        counts = [len(each) for each in (bundle.x509_authorities, bundle.jwt_authorities, bundle.wit_authorities)]
        numbers = [bundle.refresh_hint, bundle.sequence_number]
        print(f"[INFO] {what} {bundle.trust_domain} {counts} {numbers}", file=sys.stderr, flush=True)

    async def publish(
        self, request: bundlepublisher_pb2.PublishBundleRequest
    ) -> bundlepublisher_pb2.PublishBundleResponse:
        await self.told("published", request.bundle)
        return bundlepublisher_pb2.PublishBundleResponse()

    async def notify(self, request: notifier_pb2.NotifyRequest) -> notifier_pb2.NotifyResponse:
        await self.told("updated", request.bundle_updated.bundle)
        return notifier_pb2.NotifyResponse()

    async def advise(self, request: notifier_pb2.NotifyAndAdviseRequest) -> notifier_pb2.NotifyAndAdviseResponse:
        await self.told("loaded", request.bundle_loaded.bundle)
        return notifier_pb2.NotifyAndAdviseResponse()

    def services(self) -> Mapping[ServiceDescriptor, Mapping[str, Any]]:
        keys = {
            "GenerateKey": self.generate_key,
            "GetPublicKey": self.get_public_key,
            "GetPublicKeys": self.get_public_keys,
            "SignData": self.sign_data,
        }
        found: dict[ServiceDescriptor, Mapping[str, Any]] = {
            _service(init_pb2, "Init"): {"Init": self.init, "Deinit": self.deinit},
            _service(keymanager_pb2, "KeyManager"): keys,
            _service(agent_keymanager_pb2, "KeyManager"): keys,
            _service(nodeattestor_pb2, "NodeAttestor"): {"Attest": self.attest},
            _service(agent_nodeattestor_pb2, "NodeAttestor"): {"AidAttestation": self.aid_attestation},
            _service(workloadattestor_pb2, "WorkloadAttestor"): {"Attest": self.attest_workload},
            _service(svidstore_pb2, "SVIDStore"): {"PutX509SVID": self.put, "DeleteX509SVID": self.delete},
            _service(bundlepublisher_pb2, "BundlePublisher"): {"PublishBundle": self.publish},
            _service(notifier_pb2, "Notifier"): {"Notify": self.notify, "NotifyAndAdvise": self.advise},
            **self.authorities(),
        }
        if not self.does("without-config"):
            found[_service(config_pb2, "Config")] = {"Configure": self.configure, "Validate": self.validate}
        if not self.does("no-controller"):
            found[_service(grpc_controller_pb2, "GRPCController")] = {"Shutdown": self.shutdown}
        if not self.does("no-broker"):
            found[_service(grpc_broker_pb2, "GRPCBroker")] = {"StartStream": self.broker}
        return found

    def authorities(self) -> Mapping[ServiceDescriptor, Mapping[str, Any]]:
        upstream, composer = UpstreamHalf(self.does), ComposerHalf(self.does)
        above: dict[str, Any] = {"MintX509CAAndSubscribe": upstream.mint}
        if not self.does("no-publishing"):
            above |= {"PublishJWTKeyAndSubscribe": upstream.publish, "SubscribeToLocalBundle": upstream.local_bundle}
        composing = {
            "ComposeServerX509CA": composer.ca,
            "ComposeServerX509SVID": composer.server,
            "ComposeAgentX509SVID": composer.agent,
            "ComposeWorkloadX509SVID": composer.workload,
            "ComposeWorkloadJWTSVID": composer.jwt,
        }
        return {
            _service(upstreamauthority_pb2, "UpstreamAuthority"): above,
            _service(credentialcomposer_pb2, "CredentialComposer"): {} if self.does("leaves-alone") else composing,
        }


def _service(module: Any, name: str) -> ServiceDescriptor:
    found = module.DESCRIPTOR.services_by_name[name]
    assert isinstance(found, ServiceDescriptor)
    return found


def _sign(key: Any, request: keymanager_pb2.SignDataRequest, data: bytes) -> bytes:
    pss = request.HasField("pss_options")
    algorithm = _HASHES[request.pss_options.hash_algorithm if pss else request.hash_algorithm]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(Prehashed(algorithm)))
    assert isinstance(key, rsa.RSAPrivateKey)
    pad = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH) if pss else padding.PKCS1v15()
    return key.sign(data, pad, Prehashed(algorithm))


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _handler(service: ServiceDescriptor, name: str, behaviour: Any) -> Any:
    method = service.methods_by_name[name]
    codecs: dict[str, Any] = {
        "request_deserializer": GetMessageClass(method.input_type).FromString,
        "response_serializer": _serialized,
    }

    async def unary(request: Message, context: Any) -> Message | bytes:
        try:
            answer: Message | bytes = await behaviour(request)
        except Failure as failure:
            await context.abort(failure.code, failure.text)
            raise
        return answer

    async def stream(requests: Any, context: Any) -> AsyncIterator[Message]:
        known = {name: value for name, value in context.invocation_metadata() if name.startswith("x-")}
        if known:
            print(f"[INFO] told {sorted(known.items())}", file=sys.stderr, flush=True)
        try:
            async for message in behaviour(requests):
                yield message
        except Failure as failure:
            await context.abort(failure.code, failure.text)

    if method.server_streaming and not method.client_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, **codecs)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, **codecs)
    return grpc.unary_unary_rpc_method_handler(unary, **codecs)


def _before_the_handshake(words: frozenset[str]) -> None:
    if "dies-at-once" in words:
        print("the device is not plugged in", file=sys.stderr, flush=True)
        sys.exit(7)
    if "leaves-child" in words:
        subprocess.Popen(["sleep", "3600"])
        sys.exit(0)
    if "leaves-daemon" in words:
        subprocess.Popen(["sleep", "20"], start_new_session=True)
        sys.exit(0)
    if "long-line" in words:
        print("x" * 300_000, flush=True)
    if "no-handshake" in words:
        print("hello, world", flush=True)
    for word in words - WORDS:
        print(word, flush=True)
    if words & {"silent", "long-line", "no-handshake"} or words - WORDS:
        while True:
            signal.pause()


async def main(words: frozenset[str]) -> None:
    plugin = Plugin(words)
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    handlers = [
        grpc.method_handlers_generic_handler(
            service.full_name, {name: _handler(service, name, behaviour) for name, behaviour in methods.items()}
        )
        for service, methods in plugin.services().items()
    ]
    server.add_generic_rpc_handlers(tuple(handlers))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "plugin.sock")
        if plugin.does("tcp"):
            print(f"1|1|tcp|127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}|grpc", end="", flush=False)
        else:
            server.add_insecure_port(f"unix:{path}")
            print(f"1|1|unix|{path}|grpc", end="", flush=False)
        await server.start()
        print(flush=True)
        if plugin.does("floods"):
            for number in range(100_000):
                print(f"[INFO] line {number} {'x' * 100}", file=sys.stderr)
        if plugin.does("panics"):
            print("panic: everything is lost\n\ngoroutine 1 [running]:", file=sys.stderr, flush=True)
        await plugin.ended.wait()
        await server.stop(0.1)


if __name__ == "__main__":
    given = frozenset(sys.argv[1:])
    _before_the_handshake(given)
    asyncio.run(main(given))
