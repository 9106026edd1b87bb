"""SVIDStore "disk": what its files hold, whose they are, that they change together, and who is told."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from identity.bundles import from_pem
from operations import config, hcl, logs
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from plugins.catalog import PluginContext
from plugins.svidstore import StoredX509Svid, SvidStore
from publishers.disk import folder, telling
from publishers.disk.configuration import Configuration
from publishers.disk.store import load
from tests.simulators.pki import ec_key, pkcs8

ROOT = Path(__file__).parents[3]
WEB = ["name:web"]
NOBODY = 65534


def svid(number: int = 1) -> StoredX509Svid:
    """Certificates are told apart only: nothing here reads them."""
    return StoredX509Svid(
        spiffe_id="spiffe://example.org/web",
        chain=[b"leaf%d" % number, b"intermediate"],
        private_key=pkcs8(ec_key()),
        bundle=[b"root"],
        expires_at=1_900_000_000,
        federated_bundles={"z.org": [b"z"], "a.org": [b"a1", b"a2"]},
    )


def configuration(directory: Path, text: str = "") -> Configuration:
    return config.bind(Configuration, hcl.parse(f'directory = "{directory}"\n{text}', "agent.conf"))


async def store(directory: Path, text: str = "") -> SvidStore:
    return await load(configuration(directory, text), PluginContext("example.org", None, logs.get()))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_three_files_in_pem(tmp_path: Path) -> None:
    disk = await store(tmp_path / "svids")
    given = svid()
    await disk.put(given, WEB)
    place = tmp_path / "svids" / "web"
    assert from_pem((place / "svid.pem").read_text()) == [b"leaf1", b"intermediate"]
    assert from_pem((place / "svid_bundle.pem").read_text()) == [b"root"]
    key = load_pem_private_key((place / "svid_key.pem").read_bytes(), None)
    assert key.private_numbers()  # type: ignore[union-attr]
    assert [mode(place / name) for name in ("svid.pem", "svid_key.pem", "svid_bundle.pem")] == [0o644, 0o600, 0o644]
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith("..")) == [
        "svid.pem", "svid_bundle.pem", "svid_key.pem",
    ]  # fmt: skip


async def test_what_a_block_changes(tmp_path: Path) -> None:
    text = """svid "web" {
      cert_file_mode = 0640
      key_file_mode = 0440
      svid_file_name = "tls.crt"
      svid_key_file_name = "tls.key"
      svid_bundle_file_name = "ca.crt"
      combined_file_name = "all.pem"
      add_intermediates_to_bundle = true
      include_federated_domains = true
    }"""
    disk = await store(tmp_path, text)
    await disk.put(svid(), WEB)
    place = tmp_path / "web"
    assert from_pem((place / "tls.crt").read_text()) == [b"leaf1"]
    assert from_pem((place / "ca.crt").read_text()) == [b"intermediate", b"root", b"a1", b"a2", b"z"]
    assert (place / "all.pem").read_bytes() == (place / "tls.crt").read_bytes() + (place / "tls.key").read_bytes()
    assert [mode(place / name) for name in ("tls.crt", "tls.key", "ca.crt", "all.pem")] == [0o640, 0o440, 0o640, 0o440]


async def test_a_change_leaves_one_set_and_no_name_of_before(tmp_path: Path) -> None:
    disk = await store(tmp_path)
    await disk.put(svid(1), WEB)
    await disk.put(svid(2), WEB)
    again = await store(tmp_path, 'svid "web" { svid_file_name = "other.pem" }')
    (tmp_path / "web" / "mine").write_text("a file of somebody else")
    await again.put(svid(3), WEB)
    names = sorted(path.name for path in (tmp_path / "web").iterdir())
    assert [name for name in names if not name.startswith("..version-")] == [
        "..data", "mine", "other.pem", "svid_bundle.pem", "svid_key.pem",
    ]  # fmt: skip
    assert len(names) == 6
    assert from_pem((tmp_path / "web" / "other.pem").read_text())[0] == b"leaf3"


async def test_files_belong_to_whom_the_block_names(tmp_path: Path) -> None:
    """Only root can give files away, and a user who is not root is told so at the start."""
    text = 'svid "web" { user = "nobody" group = "nogroup" }'
    if os.geteuid() != 0:
        with pytest.raises(ConfigurationError, match='only root can give files to "nobody"'):
            await store(tmp_path, text)
        return
    disk = await store(tmp_path, text)
    await disk.put(svid(), WEB)
    key = tmp_path / "web" / "svid_key.pem"
    assert (key.stat().st_uid, key.stat().st_gid, mode(key)) == (NOBODY, NOBODY, 0o600)
    # What it is in stays the agent's: else a link of theirs could lead the next write elsewhere.
    assert {path.stat().st_uid for path in (key.resolve().parent, key.parent)} == {0}


async def test_deleting(tmp_path: Path) -> None:
    disk = await store(tmp_path)
    await disk.put(svid(), WEB)
    await disk.delete(WEB)
    assert not (tmp_path / "web").exists()
    await disk.delete(WEB)
    await disk.put(svid(), WEB)
    assert (tmp_path / "web" / "svid.pem").exists()


@pytest.mark.parametrize(
    "metadata",
    [[], ["name:web", "name:db"], ["name:"], ["name:.."], ["name:a/b"], ["name:.a"], ["folder:a"], ["web"],
     ["name:a\n"], ["name:" + "a" * 65], ["name:\u00e4"]],
)  # fmt: skip
async def test_selectors_that_name_no_place(tmp_path: Path, metadata: list[str]) -> None:
    disk = await store(tmp_path / "svids")
    for call in (disk.put(svid(), metadata), disk.delete(metadata)):
        with pytest.raises(InvalidArgument, match="give the entry the one selector disk:name:NAME"):
            await call
    assert list((tmp_path / "svids").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('svid "web" { key_file_mode = 0644 }', "opens the key to everybody"),
        ('svid "web" { key_file_mode = 01600 }', "no mode of such a file"),
        ('svid "web" { cert_file_mode = 0755 }', "no mode of such a file"),
        ('svid "web" { cert_file_mode = 640 }', r"cert_file_mode 640 \(octal 01200\) is no mode .*, with the zero"),
        ('svid "web" { key_file_mode = 400 }', r"key_file_mode 400 \(octal 0620\) lets a group change the key"),
        ('svid "web" { svid_file_name = "../x" }', "cannot be a file's name"),
        ('svid "web" { svid_file_name = "svid_key.pem" }', "two files have the same name"),
        ('svid "web" { renew_signal = "SIGHUP" }', "need each other"),
        ('svid "web" { renew_signal = "SIGNONE" pid_file_name = "/run/x.pid" }', "use one such as SIGHUP"),
        ('svid "a/b" { }', "cannot be an SVID's name"),
        ('svid "web" { key_mode = 0600 }', 'unknown key "key_mode"'),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        configuration(tmp_path, text)


def test_a_relative_directory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must begin with a slash"):
        configuration(Path("svids"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('user = "no-such-user"', 'svid "web": there is no user "no-such-user"'),
        ('group = "no-such-group"', 'svid "web": there is no group "no-such-group"'),
        ('on_change = ["no-such-program"]', "which cannot be run"),
    ],
)
async def test_what_this_machine_lacks_is_said_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    settings = configuration(tmp_path, f'svid "web" {{ {text} }}')
    with pytest.raises(ConfigurationError, match=words):
        settings.check_files()
    with pytest.raises(ConfigurationError, match=words):
        await store(tmp_path, f'svid "web" {{ {text} }}')


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    disk = await store(tmp_path)
    (tmp_path / "web").write_text("not a folder")
    with pytest.raises(PermanentlyUnusable, match="cannot write SVID files in"):
        await disk.put(svid(), WEB)
    assert (tmp_path / "web").read_text() == "not a folder"


def test_a_full_disk_keeps_the_old_set(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the middle of a set."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from publishers.disk import folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
place = Path({str(tmp_path / "web")!r})
folder.replace(place, {{"a": folder.File(b"1" * 10, 0o600), "b": folder.File(b"1" * 10, 0o600)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    folder.replace(place, {{"a": folder.File(b"2" * 10, 0o600), "b": folder.File(b"2" * 10_000, 0o600)}})
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    place = tmp_path / "web"
    assert (place / "a").read_bytes() + (place / "b").read_bytes() == b"1" * 20
    assert len(list(place.glob("..version-*"))) == 1


def test_kill_at_any_moment_leaves_a_whole_set(tmp_path: Path) -> None:
    script = f"""
import itertools
from pathlib import Path
from publishers.disk import folder
print("ready", flush=True)
for number in itertools.count():
    text = str(number).encode()
    folder.replace(Path({str(tmp_path / "web")!r}), {{name: folder.File(text, 0o600) for name in "abc"}})
"""
    seen: set[bytes] = set()
    for turn in range(20):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.007 * turn)
        process.kill()
        process.communicate()
        if (tmp_path / "web" / "..data").exists():
            present = [tmp_path / "web" / "..data" / name for name in "abc"]
            found = {path.read_bytes() for path in present}
            assert len(found) == 1
            seen |= found
    assert seen
    # The next one clears up.
    folder.replace(tmp_path / "web", {"a": folder.File(b"last", 0o600)})
    assert len(list((tmp_path / "web").iterdir())) == 3


async def test_a_command_is_run_after_the_files_are_there(tmp_path: Path) -> None:
    record = 'echo "$SPIFFE_ID $SVID_DIRECTORY $(head -c 10 "$SVID_DIRECTORY/svid.pem")" >>"$0"'
    disk = await store(
        tmp_path / "s",
        f"""svid "web" {{
      on_change = ["sh", "-c", {_quoted(record)}, "{tmp_path}/told"]
    }}""",
    )
    await disk.put(svid(1), WEB)
    await disk.put(svid(2), WEB)
    line = f"spiffe://example.org/web {tmp_path}/s/web -----BEGIN"
    assert (tmp_path / "told").read_text().splitlines() == [line, line]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


async def test_a_command_that_fails_is_run_again_and_the_files_are_not_written_again(tmp_path: Path) -> None:
    disk = await store(
        tmp_path / "s",
        f"""svid "web" {{
      on_change = ["sh", "-c", "echo it is down; test -e {tmp_path}/up"]
    }}""",
    )
    given = svid()
    with pytest.raises(Refused, match='on_change: sh ended with status 1: "it is down"'):
        await disk.put(given, WEB)
    version = (tmp_path / "s" / "web" / "..data").resolve()
    assert (version / "svid.pem").exists()
    (tmp_path / "up").touch()
    await disk.put(replace(given), WEB)
    assert (tmp_path / "s" / "web" / "..data").resolve() == version


async def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(TemporarilyUnavailable, match=r"longer than 0\.5 s and was ended"):
        await telling.run(["sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid; wait"], tmp_path, "spiffe://a/b", 0.5)
    child = Path("/proc") / (tmp_path / "pid").read_text().strip()
    end = time.monotonic() + 60
    while child.exists() and b" Z " not in (child / "stat").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)  # noqa: ASYNC251 nothing else runs here


async def test_a_command_that_writes_without_end_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        await telling.run(["sh", "-c", "head -c 10000000 /dev/zero | tr '\\0' x; exit 3"], tmp_path, "spiffe://a/b")
    assert "status 3" in str(caught.value)
    assert len(str(caught.value)) < 5000


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_a_signal(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    pid_file = tmp_path / "pid"
    disk = await store(tmp_path / "s", f'svid "web" {{ pid_file_name = "{pid_file}" renew_signal = "SIGUSR1" }}')
    await disk.put(svid(1), WEB)  # nobody runs yet
    pid_file.write_text(f"{sleeper.pid}\n")
    await disk.put(svid(2), WEB)
    assert sleeper.wait(60) == -signal.SIGUSR1
    await disk.put(svid(3), WEB)  # it has ended


@pytest.mark.parametrize("text", ["", "1", "-1", "0", "x", "99999999999999999999"])
def test_pid_files_that_have_no_pid(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text)
    with pytest.raises(SpireError, match="has no pid in it"):
        telling.send(signal.SIGHUP, path)
