"""A session with SoftHSM in this process, as a worker's thread has it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from pkcs11 import Attribute, PrivateKey, PublicKey, exceptions

from keystores.errors import Refused
from keystores.pkcs11 import encoding, templates
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.module import Module
from keystores.pkcs11.profiles import Profile, ProfileName
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
        patched.setitem(templates.DEMANDED, Attribute.NEVER_EXTRACTABLE, False)
        with pytest.raises(Refused, match=r"CKA_NEVER_EXTRACTABLE is true.*it was destroyed"):
            connection.run(lambda session: session.generate(wanted()))
    assert connection.run(keys) == []
    connection.run(lambda session: session.generate(wanted()))
    assert [key.label for key in connection.run(keys)] == ["ns/key"]


@pytest.mark.parametrize("refused", range(5))
def test_a_token_that_refuses_a_template_is_told_less(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Nothing was made by a call that was refused: asking for less makes the one key, and it is as safe."""
    honest = TokenSession.generated
    stated: list[Profile] = []

    def strict(self: TokenSession, wanted: Generate, profile: Profile) -> tuple[PublicKey, PrivateKey]:
        stated.append(profile)
        if len(stated) <= refused:
            raise exceptions.TemplateInconsistent
        return honest(self, wanted, profile)

    monkeypatch.setattr(TokenSession, "generated", strict)
    if refused == 4:
        with pytest.raises(Refused, match="CKR_TEMPLATE_INCONSISTENT"):
            connection.run(lambda session: session.generate(wanted()))
    else:
        with suppress(Refused):  # SoftHSM makes a key for more than signing when it is not told
            connection.run(lambda session: session.generate(wanted()))
    assert len(stated) == min(refused + 1, 4)


def test_a_token_that_cuts_its_ids_is_refused(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """As old modules of the YubiHSM do: the key would not be found again."""
    honest = TokenSession.generated

    def cutting(self: TokenSession, wanted: Generate, profile: Profile) -> tuple[PublicKey, PrivateKey]:
        return honest(self, msgspec.structs.replace(wanted, cka_id=wanted.cka_id[:2]), profile)

    monkeypatch.setattr(TokenSession, "generated", cutting)
    with pytest.raises(Refused, match="a CKA_ID of 2 bytes where 20 were given"):
        connection.run(lambda session: session.generate(wanted()))
    assert connection.run(keys) == []
