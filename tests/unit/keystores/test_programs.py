"""The programs of the served key stores: by hand, installed, and as one file each."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from keystores.programs.pkcs11_store import Pkcs11
from keystores.programs.tpm_store import Tpm
from operations import hcl
from operations.version import VERSION
from plugins import blocks
from tests.simulators.once import made_once
from tests.simulators.spire import BIN, PATIENCE, ROOT

PROGRAMS = ("spire-keystore-pkcs11", "spire-keystore-tpm")
OURS = sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file() and path.name != "tests")


def make(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "ci" / "keystore-plugins"), *arguments, str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "plugins", lambda folder: print(make(folder)))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_by_hand_it_tells_what_to_put_into_the_configuration(program: str) -> None:
    done = run(BIN / program)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{program} is a plugin: SPIRE runs it, not you" in done.stderr
    assert "Traceback" not in done.stderr
    [block] = blocks.read(hcl.parse(done.stderr[done.stderr.index('KeyManager "') : done.stderr.index("\n}") + 2], "x"))
    assert (block.command, block.checksum) == (str(BIN / program), None)
    assert block.data_text is not None
    assert "keys_path" in block.data_text


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_one_file_tells_its_checksum(files: Path, program: str) -> None:
    done = run(files / program, "-help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f'plugin_checksum = "{hashlib.sha256((files / program).read_bytes()).hexdigest()}"' in done.stdout
    assert run(files / program, "--version").stdout == f"{VERSION}\n"


@pytest.mark.parametrize("store", [Pkcs11, Tpm], ids=lambda store: store.name)
def test_the_manual_names_every_setting(store: type[Pkcs11 | Tpm]) -> None:
    page = (ROOT / "docs" / "man" / f"spire-keystore-{store.name}.1").read_text()
    named = {name for line in re.findall(r"^\.It Va (.*)$", page, re.MULTILINE) for name in line.split(" , ")}
    assert named == {setting.encode_name for setting in msgspec.structs.fields(store.model)}


def test_the_checksums_are_printed(tmp_path: Path) -> None:
    lines = make(tmp_path / "made").splitlines()
    assert lines == [
        f"{hashlib.sha256((tmp_path / 'made' / name).read_bytes()).hexdigest()}  {tmp_path / 'made' / name}"
        for name in PROGRAMS
    ]


def test_the_same_sources_give_the_same_bytes(files: Path, tmp_path: Path) -> None:
    make(tmp_path)
    for program in PROGRAMS:
        assert (files / program).read_bytes() == (tmp_path / program).read_bytes()


def test_the_compiled_module_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    digests: set[str] = set()
    for name in ("one", "two"):
        folder = tmp_path / name / "transport"
        folder.mkdir(parents=True)
        for path in (ROOT / "transport").iterdir():
            if path.name == "build_nghttp2.py" or path.suffix in {".c", ".h"}:
                shutil.copy(path, folder)
        (folder / "__init__.py").touch()
        command = [sys.executable, "-m", "transport.build_nghttp2"]
        done = subprocess.run(command, cwd=folder.parent, check=True, capture_output=True, text=True)
        digests.add(hashlib.sha256(Path(done.stdout.strip()).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_holds_all_code_of_ours_and_no_more_than_it_may_load(files: Path, program: str) -> None:
    with zipfile.ZipFile(files / program) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} <= {*OURS, "__main__.py"}
    assert not [name for name in names if re.match(r"(server|agent|attestors|authorities|tests|bench|ci)/", name)]
    store, other = program.rpartition("-")[2], {"pkcs11": "tpm", "tpm": "pkcs11"}[program.rpartition("-")[2]]
    assert f"keystores/programs/{store}.py" in names
    assert f"keystores/programs/{other}.py" not in names


def test_what_it_loads_of_ours_is_in_the_file(files: Path, tmp_path: Path) -> None:
    """Every module it holds is imported, from another folder, with the sources of this one out of reach or not."""
    with zipfile.ZipFile(files / PROGRAMS[0]) as archive:
        modules = [
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.endswith(".py") and name != "__main__.py"
        ]
    probe = (
        "import importlib, runpy, sys\n"
        "sys.argv = [sys.argv[1], '-version']\nsys.path.insert(0, sys.argv[0])\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n    pass\n"
        f"for name in {modules!r} + ['transport._nghttp2']:\n    importlib.import_module(name)\n"
        f"for name, module in sys.modules.items():\n    if name.split('.')[0] in {OURS!r}:\n"
        "        print(name, getattr(module, '__file__', None) or module.__path__)"
    )
    interpreter = (files / PROGRAMS[0]).read_bytes().partition(b"\n")[0].decode().removeprefix("#!").split()
    done = subprocess.run(
        [*interpreter, "-c", probe, str(files / PROGRAMS[0])], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line != VERSION)
    assert found.keys() >= {*modules, "transport._nghttp2"}
    assert not {name: place for name, place in found.items() if not place.startswith("/proc/")}


def test_another_interpreter_may_be_named(tmp_path: Path) -> None:
    make(tmp_path, "-python", "/usr/lib/spire/bin/python3")
    assert (tmp_path / PROGRAMS[0]).read_bytes().startswith(b"#!/usr/lib/spire/bin/python3 -I\nPK")


@pytest.mark.parametrize("python", ["python3", f"/{'x' * 260}", "/a folder/python3"])
def test_an_interpreter_that_the_kernel_would_not_find_is_refused(tmp_path: Path, python: str) -> None:
    done = run(sys.executable, ROOT / "ci" / "keystore-plugins", "-python", python, tmp_path)
    assert done.returncode == 2
    assert "absolute path without spaces" in done.stderr


def remade(original: Path, made: Path, shebang: str, change: tuple[str, str] = ("", "")) -> Path:
    """The program with another first line, and its files' names changed."""
    with zipfile.ZipFile(original) as old, made.open("wb") as file:
        file.write(f"{shebang}\n".encode())
        with zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name.replace(*change), old.read(name))
    made.chmod(0o755)
    return made


def test_an_interpreter_without_the_libraries_is_told_of(files: Path, tmp_path: Path) -> None:
    program = remade(files / PROGRAMS[0], tmp_path / PROGRAMS[0], "#!/usr/bin/python3 -IS")
    done = run(program, KeyManager="KeyManager")
    assert done.returncode == 1
    assert re.fullmatch(rf"{program}: \S+ lacks \w+, which this file needs beside it\n", done.stderr)


def test_one_made_for_another_python_is_told_of(files: Path, tmp_path: Path) -> None:
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    program = remade(files / PROGRAMS[0], tmp_path / PROGRAMS[0], f"#!{sys.prefix}/bin/python3 -I", (tag, "cpython-30"))
    done = run(program, KeyManager="KeyManager")
    assert done.returncode == 1
    assert "make it anew for that Python" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_runs_from_memory_cannot_be_changed() -> None:
    code = (
        "from keystores.programs.one_file import in_memory\n"
        "path = in_memory('x', b'content')\nassert open(path, 'rb').read() == b'content'\n"
        "open(path, 'r+b', buffering=0).write(b'x')"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr
