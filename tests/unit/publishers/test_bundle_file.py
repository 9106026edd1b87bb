"""BundlePublisher and Notifier "disk": the file, what it holds, and what may be in its place."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from identity.bundles import Bundle, JwtAuthority, X509Authority, from_pem
from operations import logs
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable
from publishers import bundle_file, documents
from publishers.bundle_file import BundleFile, NotifierConfiguration, PublisherConfiguration
from tests.simulators.house import TRUST_DOMAIN
from tests.simulators.pki import Authority, ec_key, spki


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(
        TRUST_DOMAIN,
        (X509Authority(Authority.root().der),),
        (JwtAuthority("a-key", spki(ec_key())),),
        refresh_hint=60,
        sequence_number=7,
    )


def publisher(path: Path, **settings: Any) -> BundleFile:
    given: dict[str, Any] = {"format": "spiffe", **settings}
    return BundleFile(PublisherConfiguration(path=str(path), **given), logs.get("test"))


async def test_each_format(tmp_path: Path, bundle: Bundle) -> None:
    documents_: dict[str, Any] = {}
    for format_ in ("spiffe", "jwks"):
        await publisher(tmp_path / format_, format=format_).publish(bundle)
        documents_[format_] = json.loads((tmp_path / format_).read_text())
    assert documents_["spiffe"]["spiffe_sequence"] == 7
    assert documents_["spiffe"]["spiffe_refresh_hint"] == 60
    assert [key["use"] for key in documents_["spiffe"]["keys"]] == ["x509-svid", "jwt-svid"]
    assert set(documents_["jwks"]) == {"keys"}
    assert [key.get("use") for key in documents_["jwks"]["keys"]] == [None, None]
    assert [key.get("kid") for key in documents_["jwks"]["keys"]] == [None, "a-key"]
    await publisher(tmp_path / "pem", format="pem").publish(bundle)
    assert from_pem((tmp_path / "pem").read_text()) == [bundle.x509_authorities[0].der]


async def test_a_refresh_hint_replaces_the_bundles(tmp_path: Path, bundle: Bundle) -> None:
    await publisher(tmp_path / "bundle", refresh_hint="5m").publish(bundle)
    assert json.loads((tmp_path / "bundle").read_text())["spiffe_refresh_hint"] == 300


async def test_a_file_that_is_right_is_left_alone_and_one_that_is_not_is_mended(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "bundle"
    disk = publisher(path)
    await disk.publish(bundle)
    first = path.stat()
    assert first.st_mode & 0o7777 == 0o644
    await disk.publish(bundle)
    assert path.stat().st_ino == first.st_ino
    content = path.read_bytes()
    path.write_text("somebody else's")
    await disk.publish(bundle)
    assert path.read_bytes() == content
    path.chmod(0o600)
    await disk.publish(bundle)
    assert path.stat().st_mode & 0o7777 == 0o644
    path.unlink()
    await disk.publish(bundle)
    assert path.read_bytes() == content
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["bundle"]


async def test_what_is_no_file_is_not_replaced(tmp_path: Path, bundle: Bundle) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "a symbolic link"), ("folder", "a folder"), ("pipe", "no regular file")):
        with pytest.raises(PermanentlyUnusable, match=f"{name} is {words}"):
            await publisher(tmp_path / name).publish(bundle)
        with pytest.raises(ConfigurationError, match=f"{name} is {words}"):
            PublisherConfiguration(path=str(tmp_path / name), format="pem").check_files()
    assert other.read_text() == "of somebody"


async def test_a_disk_that_is_full_leaves_what_was_there(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    path.write_text("the last one")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk = publisher(path)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_file, "write_atomically", full)
        with pytest.raises(PermanentlyUnusable, match="No space left on device; what was there before stays"):
            await disk.publish(bundle)
    assert path.read_text() == "the last one"
    await disk.publish(bundle)
    assert path.read_text() != "the last one"


async def test_a_folder_that_is_gone_is_one_line(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(PermanentlyUnusable, match="No such file or directory"):
        await publisher(tmp_path / "none" / "bundle").publish(bundle)


async def test_notifiers_write_pem_unless_they_are_told_otherwise(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "bundle"
    notifier = BundleFile(NotifierConfiguration(path=str(path)), logs.get("test"))
    await notifier.bundle_loaded(bundle)
    assert path.read_text() == bundle.to_pem()
    await notifier.bundle_updated(Bundle(TRUST_DOMAIN))
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "path is missing"),
        ({"path": "bundle"}, "must begin with a slash"),
        ({"path": "/b"}, "format is missing: use spiffe, jwks or pem"),
        ({"path": "/b", "format": "der"}, 'format "der" is unknown'),
        ({"path": "/b", "format": "pem", "refresh_hint": "5m"}, "refresh_hint has no place in the format pem"),
        ({"path": "/b", "format": "spiffe", "refresh_hint": "5"}, "no duration such as 5m"),
        ({"path": "/b", "format": "spiffe", "refresh_hint": "-1m"}, "must be a second or longer"),
        ({"path": "/b", "format": "pem", "mode": 644}, r"mode 644 \(octal 01204\) is no mode"),
        ({"path": "/b", "format": "pem", "mode": 0o666}, "lets everybody change"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        PublisherConfiguration(**settings)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    given = PublisherConfiguration(path=str(tmp_path / "none" / "bundle"), format="pem")
    with pytest.raises(ConfigurationError, match=f"there is no folder {tmp_path}/none"):
        given.check_files()
    with pytest.raises(ConfigurationError, match='no user "nobody-here"'):
        PublisherConfiguration(path=str(tmp_path / "bundle"), format="pem", user="nobody-here").check_files()


def test_the_same_bundle_gives_the_same_bytes(bundle: Bundle) -> None:
    for format_ in documents.FORMATS:
        assert documents.render(bundle, format_) == documents.render(bundle, format_)
