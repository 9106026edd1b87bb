"""HCL 1 as SPIRE's reader takes it. The expected values are what that reader gives for the same text."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import hcl
from operations.errors import ConfigurationError


def plain(value: hcl.Value) -> Any:
    """The value in lists and dictionaries: blocks by type and labels, each a list."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if not isinstance(value, hcl.Body):
        return value
    result: dict[str, Any] = {}
    for item in value.items:
        if isinstance(item, hcl.Attribute):
            result[item.name] = plain(item.value)
        else:
            result.setdefault(" ".join([item.type, *item.labels]), []).append(plain(item.body))
    return result


def parsed(text: str) -> Any:
    return plain(hcl.parse(text, "test.conf"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("\ufeffa = 1", {"a": 1}),
        ("a = 0644\nb = 0x1F\nc = -12\nd = 0\ne = 007", {"a": 420, "b": 31, "c": -12, "d": 0, "e": 7}),
        ("a = 1.5\nb = 1e3\nc = -0.5\nd = .5\ne = 5.", {"a": 1.5, "b": 1000.0, "c": -0.5, "d": 0.5, "e": 5.0}),
        ("a = true b = false", {"a": True, "b": False}),
        ('"server" { "0" = 1, x = "y", }', {"server": [{"0": 1, "x": "y"}]}),
        ('a "b" "c" { d = { e = 1 } }', {"a b c": [{"d": [{"e": 1}]}]}),
        ("a { x = 1 }\na { x = 2 }", {"a": [{"x": 1}, {"x": 2}]}),
        ('a = [1, "x", true, [2], { b = 3 }, ]', {"a": [1, "x", True, [2], {"b": 3}]}),
        ("a = [1,,2]\nb = []", {"a": [1, 2], "b": []}),
        ("a = [ # one\n 1, // two\n /* three */ 2 ]", {"a": [1, 2]}),
        ("/* x\n y */ a=1 // z\n# q\nb=2 /* t */ c=3", {"a": 1, "b": 2, "c": 3}),
        ("a.b = 1\na-b = 2\nñ_1 = 3", {"a.b": 1, "a-b": 2, "ñ_1": 3}),
        ("a=1\r\nb=<<E\r\nfoo\r\nE\r\n", {"a": 1, "b": "foo\n"}),
        ("a = 1\na = 2", {"a": 2}),
    ],
)
def test_structure(text: str, value: object) -> None:
    assert parsed(text) == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ('"%{x}"', "%{x}"),
        ('"${foo "bar" }"', '${foo "bar" }'),
        ('"${a}}"', "${a}}"),
        ('"$x ${y} $$"', "$x ${y} $$"),
        ('"${\n x}"', "${\n x}"),
        (r'"a\"b\n\x41\u00e9\101\\"', 'a"b\nAé' + "A\\"),
        ('"{}"', "{}"),
        ('"# no comment"', "# no comment"),
        ('""', ""),
        ("<<EOT\nfoo\n  bar\nEOT\n", "foo\n  bar\n"),
        ("<<EOT\n x\n  EOT\n", " x\n  "),
        ("<<E\nE\n", ""),
        ("<<-EOT\n    foo\n      bar\n    EOT\n", "foo\n  bar\n"),
        ("<<-EOT\n foo\n   bar\n  EOT\n", " foo\n   bar\n"),
        ("<<EOT\nfoo\nEOT", "foo\n"),
        ("<<EOT\nEOTX\nEOT\n", "EOTX\n"),
    ],
)
def test_texts(literal: str, value: str) -> None:
    assert parsed(f"a = {literal}") == {"a": value}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a = 08", 1, "08 is no octal number"),
        ('a = "\\d"', 1, "illegal escape"),
        ('a = "\\ud800"', 1, "is no character"),
        ("a = foo", 1, 'found "foo": texts need double quotes'),
        ("\na = 'x'", 2, 'unexpected character "\'"'),
        ('a = "x\ny"', 1, "the string is not closed on its line"),
        ('a = "${x"', 1, "a ${ in the string is not closed"),
        ("\n\na {\n b = 1\n", 3, 'the "{" of this line is not closed'),
        ("a = 1\n}", 2, 'expected a name, found "}"'),
        ("a = [1 2]", 1, "expected a comma or the end of the list, found a number"),
        ("a = [1", 1, "expected a comma or the end of the list, found the end of the file"),
        ('a "b" = 1', 1, '"a" has a label, so it is a block'),
        ("a", 1, 'expected "=" or "{" after "a", found the end of the file'),
        ("= 1", 1, 'expected a name, found "="'),
        (",a = 1", 1, 'expected a name, found ","'),
        ("true = 1", 1, "expected a name, found true or false"),
        ("a =\n", 2, "expected a value, found the end of the file"),
        ("a = 1 / 2", 1, "unexpected character '/'"),
        ("\n/* x", 2, "the comment is not closed"),
        ("a = <<EOT\nfoo\n", 1, "the text block is not closed with a line EOT"),
        ("a = <<EOT x\nEOT\n", 1, "a text block starts with"),
        ("a = 1\nb = \0", 2, "a null character"),
        ("a " + "{ a " * 100, 1, "nested more than 64 levels deep"),
    ],
)
def test_faults_name_file_and_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        hcl.parse(text, "some/test.conf")
    assert str(error.value).startswith(f"some/test.conf:{line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_json_form() -> None:
    text = '{\n "a": 1,\n "b": {"c": [1, "x", {"d": true}]},\n "e": null,\n "f": "\\u00e9\\/"\n}\n'
    body = hcl.parse(text, "x.json")
    assert plain(body) == {"a": 1, "b": [{"c": [1, "x", {"d": True}]}], "f": "é/"}
    assert body.find("f").line == 5
    assert body.blocks[0].source == '{"c": [1, "x", {"d": true}]}'
    for broken, line in (('{\n"a" 1}', 2), ('{"a": 1 "b": 2}', 1), ('{"a": 1} x', 1), ('{"a": 1', 1), ("{a: 1}", 1)):
        with pytest.raises(ConfigurationError, match=rf"^x\.json:{line}: "):
            hcl.parse(broken, "x.json")


def test_positions_sources_and_names() -> None:
    body = hcl.parse('server {\n  Bind_Port = 0644\n}\nplugins {\n  KeyManager "disk" { a = 1 }\n}\n', "s.conf")
    assert body.find("server", "bind_port") == hcl.Position("s.conf", 2)
    assert body.find("server", "missing").line == 1
    assert body.find("nothing").line == 1
    plugin = body.blocks[1].body.blocks[0]
    assert (plugin.type, plugin.labels, plugin.source, plugin.position.line) == ("KeyManager", ("disk",), " a = 1 ", 5)
    number = body.blocks[0].body.attributes["Bind_Port"].value
    assert isinstance(number, int)
    assert getattr(number, "text", None) == "0644"
    assert [item.position.line for item in body.named("SERVER")] == [1]


def test_variables_are_put_in_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "example.org")
    monkeypatch.delenv("UNSET", raising=False)
    text = 'a = "$NAME/${NAME}x/$UNSET/$$NAME/$1"'
    assert parsed(text) == {"a": "$NAME/${NAME}x/$UNSET/$$NAME/$1"}
    expanded = plain(hcl.parse(text, "x", expand_env=True))
    assert expanded == {"a": "example.org/example.orgx//$NAME/"}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigurationError, match="not UTF-8") as error:
        hcl.load(path)
    assert (error.value.file, error.value.line) == (os.fspath(path), 2)
    with pytest.raises(ConfigurationError, match="cannot read the configuration: No such file"):
        hcl.load(tmp_path / "none.conf")
    path.write_text("a = 1\n")
    assert hcl.load(path).attributes["a"].position == hcl.Position(os.fspath(path), 1)


@given(st.text(alphabet='ab{}[]",=\n\\$<E-/*#01.: ', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        hcl.parse(text, "fuzz")


@given(st.text(max_size=40))
def test_quoted_texts_come_back(text: str) -> None:
    escaped = "".join(f"\\U{ord(char):08x}" for char in text if not 0xD800 <= ord(char) < 0xE000)
    wanted = "".join(char for char in text if not 0xD800 <= ord(char) < 0xE000)
    assert parsed(f'a = "{escaped}"') == {"a": wanted}
