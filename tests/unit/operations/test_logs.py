import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from operations import logs
from operations.errors import ConfigurationError, NotFound


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, levels = list(root.handlers), (root.level, logging.getLogger("spire").level)
    handler = signal.getsignal(signal.SIGUSR2)
    yield
    for added in [one for one in root.handlers if one not in before]:
        root.removeHandler(added)
        added.close()
    root.setLevel(levels[0])
    logging.getLogger("spire").setLevel(levels[1])
    signal.signal(signal.SIGUSR2, handler)


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_text_lines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("debug", "text", str(file))
    logs.get("api").bind(authority="a/b").warning("Hello, world", count=1, error=NotFound('no "x"\ny'))
    logs.get().info("Started", none=None, ok=True, ttl=timedelta(minutes=1), ids=["a", "b"], raw=b"\x01", empty="")
    first, second = _lines(file)
    assert re.fullmatch(
        rf'time="{TIME}" level=warning msg="Hello, world" authority=a/b count=1 '
        r'error="no \\"x\\"\\ny" subsystem_name=api',
        first,
    )
    assert second.endswith('level=info msg=Started empty= ids="[a b]" none="<nil>" ok=true raw=01 ttl=1m0s')


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "JSON", str(file))
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    logs.get("ca").error("Bad", msg="taken", number=5, when=when, error=ValueError("x"))
    line = json.loads(_lines(file)[0])
    assert re.fullmatch(TIME, line.pop("time"))
    assert line == {
        "level": "error",
        "msg": "Bad",
        "fields.msg": "taken",
        "number": 5,
        "when": "2026-01-02T03:04:05Z",
        "error": "x",
        "subsystem_name": "ca",
    }


def test_levels_change_while_running(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("WARN", "", str(file))
    log = logs.get()
    log.info("one")
    assert (logs.level(), logs.launch_level()) == ("warning", "warning")
    logs.set_level("debug")
    log.debug("two")
    assert log.enabled("debug")
    logs.reset_level()
    log.debug("three")
    assert [line.split("msg=")[1] for line in _lines(file)] == ["two"]


def test_source_location(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "text", str(file), source_location=True)
    logs.get().info("here")
    assert re.search(r'file="test_logs.py:\d+" func=test_source_location$', _lines(file)[0])


def test_usr2_opens_the_file_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "text", str(file))
    logs.get().info("one")
    file.rename(tmp_path / "log.1")
    os.kill(os.getpid(), signal.SIGUSR2)
    logs.get().info("two")
    assert [len(_lines(path)) for path in (tmp_path / "log.1", file)] == [1, 1]
    (tmp_path / "log.2").mkdir()
    file.unlink()
    file.mkdir()
    os.kill(os.getpid(), signal.SIGUSR2)  # cannot be opened: it goes on, with the old one
    logs.get().info("three")


def test_libraries_warn_the_same_way(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "text", str(file))
    logging.getLogger("some.library").info("quiet")
    logging.getLogger("some.library").warning("%s!", "careful")
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logs.get().exception("Unexpected")
    warning, error = _lines(file)
    assert warning.endswith('level=warning msg="careful!" subsystem_name=some.library')
    assert 'traceback="Traceback (most recent call last):\\n' in error


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='not a valid logrus Level: "loud"'):
        logs.setup("loud", "text")
    with pytest.raises(ConfigurationError, match='unknown logger format: "xml"'):
        logs.setup("info", "xml")
    with pytest.raises(ConfigurationError, match="cannot open the log file: No such file"):
        logs.setup("info", "text", str(tmp_path / "no" / "log"))


def test_standard_output_without_a_file(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    logs.setup("info", "text")
    logs.get().info("out")
    captured = capfdbinary.readouterr()
    assert b"level=info msg=out\n" in captured.out
    assert captured.err == b""
