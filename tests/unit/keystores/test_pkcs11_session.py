"""A session with SoftHSM in this process, as a worker's thread has it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from pkcs11 import Attribute

from keystores.errors import Refused
from keystores.pkcs11 import encoding, session
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.module import Module
from keystores.pkcs11.profiles import ProfileName
from keystores.pkcs11.protocol import FoundKey, Generate, TokenName
from keystores.pkcs11.session import TokenSession
from plugins.keymanager import KeyType
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm


class Attempt:
    pin = softhsm.USER_PIN

    def accepted(self) -> None:
        pass

    def refused(self) -> None:
        raise AssertionError("the PIN was refused")


@pytest.fixture
def connection(hsm: SoftHsm) -> Iterator[Connection]:
    module = Module(softhsm.MODULE)
    made = Connection(module, TokenName("the test's", label=hsm.label), ProfileName.AUTO, Attempt)
    yield made
    made.close()
    module.finalize()


def wanted(label: str = "ns/key") -> Generate:
    parameters = encoding.EC_PARAMETERS[KeyType.EC_P256]
    return Generate(secrets.token_bytes(20), label, "ec-p256", parameters, None)


def keys(session: TokenSession) -> list[FoundKey]:
    return session.keys(lambda label: label.startswith("ns/"))


def test_a_key_that_is_not_safe_is_destroyed(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the token had made a key whose attributes are not those that were asked for."""
    with monkeypatch.context() as patched:
        patched.setitem(session.DEMANDED, Attribute.NEVER_EXTRACTABLE, False)
        with pytest.raises(Refused, match=r"CKA_NEVER_EXTRACTABLE is true.*it was destroyed"):
            connection.run(lambda session: session.generate(wanted()))
    assert connection.run(keys) == []
    connection.run(lambda session: session.generate(wanted()))
    assert [key.label for key in connection.run(keys)] == ["ns/key"]
