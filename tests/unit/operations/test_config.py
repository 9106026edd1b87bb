from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Literal

import msgspec
import pytest

from operations import hcl
from operations.config import bind
from operations.errors import ConfigurationError, ConfigurationErrors


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    count: int = 0


class Model(msgspec.Struct, frozen=True, kw_only=True):
    text: str = ""
    number: int = 0
    ratio: float = 0.0
    switch: bool | None = None
    ttl: timedelta | None = None
    colour: Colour = Colour.RED
    mode: Literal["on", "off"] = "on"
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = {}
    pcr: dict[str, str] = {}
    rest: hcl.Body | None = None
    either: str | hcl.Body = ""
    renamed: int = msgspec.field(default=0, name="Renamed")

    def __post_init__(self) -> None:
        if self.text == "bad":
            raise ValueError("text must not be bad")


class Strict(msgspec.Struct, frozen=True, kw_only=True):
    path: str


def bound(text: str) -> Model:
    return bind(Model, hcl.parse(text, "x.conf"))


def test_every_kind() -> None:
    model = bound(
        """
        TEXT = "t"  number = "0x10"  ratio = 2  switch = true  ttl = "1h"  colour = "blue"  mode = "off"
        names = ["a", 0644]
        inner { name = "i" }
        inner { count = 3 }
        many { name = "1" }
        many = [{ name = "2" }, { name = "3" }]
        by_name "a" { count = 1 }
        by_name { b { count = 2 } }
        pcr = { "0" = "ff" }
        rest "label" { x = 1 }
        either { y = 1 }
        renamed = 5
        """
    )
    assert (model.text, model.number, model.ratio, model.switch) == ("t", 16, 2.0, True)
    assert (model.ttl, model.colour, model.mode, model.names) == (timedelta(hours=1), Colour.BLUE, "off", ("a", "0644"))
    assert model.inner == Inner(name="i", count=3)
    assert [one.name for one in model.many] == ["1", "2", "3"]
    assert model.by_name == {"a": Inner(count=1), "b": Inner(count=2)}
    assert model.pcr == {"0": "ff"}
    assert model.rest is not None
    assert model.rest.blocks[0].type == "label"
    assert isinstance(model.either, hcl.Body)
    assert model.renamed == 5
    assert bound('either = "x"').either == "x"
    assert bound("") == Model()
    assert bound("text = 8081").text == "8081"
    assert bound('text = "a"\ntext = "b"').text == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\ntxt = "x"', 'x.conf:2: unknown key "txt": did you mean "text"?'),
        ("zzz = 1", 'x.conf:1: unknown key "zzz"'),
        ("inner { nme = 1 }", 'x.conf:1: unknown key "nme" in inner: did you mean "name"?'),
        ("text = true", "x.conf:1: text: expected a text, found true"),
        ("text = 1.5", "x.conf:1: text: expected a text, found 1.5"),
        ("text { }", "x.conf:1: text: expected a text, found a block"),
        ('number = "many"', 'x.conf:1: number: expected a whole number, found "many"'),
        ("number = 1.5", "x.conf:1: number: expected a whole number, found 1.5"),
        ("number = true", "x.conf:1: number: expected a whole number, found true"),
        ("number = 9223372036854775808", "x.conf:1: number: 9223372036854775808 is too large"),
        ('switch = "true"', 'x.conf:1: switch: expected true or false, without quotes, found a text ("true")'),
        ('ttl = "soon"', 'x.conf:1: ttl: time: invalid duration "soon"'),
        ("ttl = 5", 'x.conf:1: ttl: time: missing unit in duration "5"'),
        ('colour = "green"', 'x.conf:1: colour: unknown value "green": use one of red, blue'),
        ('mode = "maybe"', 'x.conf:1: mode: unknown value "maybe": use one of on, off'),
        ('names = "a"', "x.conf:1: names: expected a list, in [ ]"),
        ("names = [true]", "x.conf:1: names: expected a text, found true"),
        ("inner = 5", "x.conf:1: inner: expected a block"),
        ('inner "x" { }', 'x.conf:1: inner takes no label, found "x"'),
        ('by_name "a" { count = "x" }', 'x.conf:1: by_name.a.count: expected a whole number, found "x"'),
        ("rest = 1", "x.conf:1: rest: expected a block"),
        ('text = "bad"', "x.conf:1: text must not be bad"),
    ],
)
def test_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        bound(text)
    assert str(error.value) == message


def test_all_faults_at_once_in_the_order_of_lines() -> None:
    with pytest.raises(ConfigurationErrors) as errors:
        bound('number = true\nfoo = 1\ninner {\n  count = "x"\n}\n')
    assert [problem.line for problem in errors.value.problems] == [1, 2, 4]
    assert str(errors.value).splitlines()[1] == 'x.conf:2: unknown key "foo"'
    assert (errors.value.file, errors.value.line) == ("x.conf", 1)


def test_missing_settings_and_sections() -> None:
    with pytest.raises(ConfigurationError, match=r"^x\.conf:1: plugin\.path must be configured$"):
        bind(Strict, hcl.parse("", "x.conf"), section="plugin")
