"""A root's key in a TPM, made by the tools that operators have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from keystores.errors import NotFound, Refused, TemporarilyUnavailable, Unsupported
from keystores.tpm.root import RootConfiguration, open_root
from operations import logs
from operations.errors import ConfigurationError, SpireError
from plugins.catalog import PluginContext
from plugins.rootkey import RootKey
from tests.simulators import swtpm
from tests.simulators.swtpm import SIGNING, Swtpm

SRK, KEY = "0x81000001", "0x81010001"
CONTEXT = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("tpm"))


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    with swtpm.started(tmp_path / "tpm") as started:
        started.make_srk()
        yield started


def make(tpm: Swtpm, name: str, kind: str, *options: str, parent: str = SRK, attributes: str = SIGNING) -> Path:
    """A key by tpm2_create, as a pair of files. Returns the private one's path."""
    files = ("-u", f"{name}.pub", "-r", f"{name}.priv")
    tpm.tool("create", "-C", parent, "-G", kind, *files, "-a", attributes, *options)
    return tpm.path.with_name(f"{name}.priv")


def verify(key: RootKey, signature: bytes, message: bytes) -> None:
    public = serialization.load_der_public_key(key.public_key)
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, message, ec.ECDSA(hashes.SHA384() if public.key_size == 384 else hashes.SHA256()))
    else:
        assert isinstance(public, rsa.RSAPublicKey)
        public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())


async def signs(tpm: Swtpm, configuration: RootConfiguration) -> str:
    """Open the key and sign with it. Returns its name."""
    there = tpm.handles()
    key = await open_root(configuration, CONTEXT)
    for message in (b"", b"a certificate" * 1000):
        verify(key, await key.sign(message), message)
    await key.close()
    await key.close()
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await key.sign(b"late")
    assert tpm.handles() == there
    return key.name


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "rsa2048", "rsa3072"])
async def test_a_key_of_tpm2_create_signs(tpm: Swtpm, kind: str) -> None:
    path = make(tpm, "root", kind)
    assert await signs(tpm, RootConfiguration(tcti=tpm.tcti, key_file=str(path), parent=SRK)) == str(path)


async def test_a_key_at_a_persistent_handle_signs(tpm: Swtpm) -> None:
    make(tpm, "root", "ecc256")
    tpm.tool("load", "-C", SRK, "-u", "root.pub", "-r", "root.priv", "-c", "root.ctx")
    tpm.tool("evictcontrol", "-C", "o", "-c", "root.ctx", KEY)
    tpm.tool("flushcontext", "-t")
    assert await signs(tpm, RootConfiguration(tcti=tpm.tcti, key_handle=KEY)) == KEY


async def test_a_tss2_pem_file_signs_under_the_parent_that_it_names(tpm: Swtpm) -> None:
    make(tpm, "root", "ecc384")
    tpm.tool("encodeobject", "-C", SRK, "-u", "root.pub", "-r", "root.priv", "-o", "root.pem")
    path = tpm.path.with_name("root.pem")
    assert await signs(tpm, RootConfiguration(tcti=tpm.tcti, key_file=str(path))) == str(path)


async def test_a_key_with_an_authorization_signs_by_it_and_a_wrong_one_is_tried_once(tpm: Swtpm) -> None:
    path = make(tpm, "root", "ecc256", "-p", "secret")
    auth = tpm.path.with_name("auth")
    auth.write_text("secret\n")
    auth.chmod(0o600)
    configuration = RootConfiguration(tcti=tpm.tcti, key_file=str(path), parent=SRK, key_auth_file=str(auth))
    await signs(tpm, configuration)

    auth.write_text("wrong")
    key = await open_root(configuration, CONTEXT)
    for _ in range(2):
        with pytest.raises(Refused, match=r"root\.priv: the TPM refused the authorization; see key_auth_file"):
            await key.sign(b"message")
    await key.close()


async def bare(tpm: Swtpm, **settings: str) -> None:
    key = await open_root(RootConfiguration(tcti=tpm.tcti, **settings), CONTEXT)
    await key.close()


async def test_what_is_no_root_is_refused_by_one_line(tpm: Swtpm, tmp_path: Path) -> None:
    restricted = make(tpm, "ak", "ecc256:ecdsa-sha256:null", attributes=f"{SIGNING}|restricted")
    decrypts = make(tpm, "dk", "rsa2048", attributes=SIGNING.replace("sign", "decrypt"))
    garbage, unfinished = tmp_path / "key.pem", tmp_path / "short.pem"
    garbage.write_text("nothing")
    unfinished.write_text("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n")
    cases: list[tuple[dict[str, str], type[SpireError], str]] = [
        ({}, ConfigurationError, "set one of key_handle and key_file"),
        ({"key_handle": KEY, "key_file": "x"}, ConfigurationError, "set one of key_handle and key_file"),
        ({"key_handle": "1"}, ConfigurationError, "key_handle: '1' is no persistent handle"),
        ({"key_handle": KEY}, NotFound, f"the TPM has no key at {KEY}"),
        ({"key_handle": SRK}, Refused, "must have sign set"),
        ({"key_file": str(tmp_path / "none")}, ConfigurationError, "key_file: it cannot be read: No such file"),
        ({"key_file": str(garbage)}, ConfigurationError, "key_file: neither PEM of"),
        ({"key_file": str(unfinished)}, ConfigurationError, "key_file: it cannot be understood"),
        ({"key_file": str(restricted), "parent": SRK}, Refused, "restricted clear"),
        ({"key_file": str(decrypts), "parent": SRK}, Refused, "must have sign set"),
        ({"key_file": str(restricted), "parent": "0x81000009"}, NotFound, "the TPM has no key at 0x81000009"),
    ]
    for settings, kind, line in cases:
        with pytest.raises(kind, match=line):
            await bare(tpm, **settings)


async def test_a_key_of_another_tpm_is_refused(tpm: Swtpm, tmp_path: Path) -> None:
    path = make(tpm, "root", "ecc256")
    with swtpm.started(tmp_path / "other") as other:
        other.make_srk()
        with pytest.raises(SpireError, match="another TPM made it"):
            await bare(other, key_file=str(path), parent=SRK)


async def test_a_curve_that_nobody_knows_is_unsupported(tpm: Swtpm) -> None:
    path = make(tpm, "root", "ecc521")
    with pytest.raises(Unsupported, match="neither P-256 nor P-384"):
        await bare(tpm, key_file=str(path), parent=SRK)
