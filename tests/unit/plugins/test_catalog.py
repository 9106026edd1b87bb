from pathlib import Path

import msgspec
import pytest

from operations import hcl, logs
from operations.errors import ConfigurationError, ConfigurationErrors
from plugins import catalog
from plugins.blocks import PluginBlock
from plugins.catalog import Builtin, PluginContext


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    fail: bool = False


class Plugin:
    def __init__(self, settings: Settings, context: PluginContext) -> None:
        self.settings = settings
        self.context = context


async def load(settings: Settings, context: PluginContext) -> Plugin:
    if settings.fail:
        raise ConfigurationError("the device is not there")
    return Plugin(settings, context)


BUILTINS = {"KeyManager": {"test": Builtin(f"{__name__}:Settings", f"{__name__}:load")}}
TYPES = {"KeyManager": catalog.Count()}
CONTEXT = PluginContext("example.org", "/data", logs.get("test"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's import mode gives test modules no name that can be imported: the catalogue's table needs one."""

    def attribute(name: str) -> object:
        return globals()[name.rpartition(":")[2]]

    monkeypatch.setattr(catalog, "_attribute", attribute)


def read(text: str) -> tuple[PluginBlock, ...]:
    body = hcl.parse(f"plugins {{\n{text}\n}}\n", "s.conf")
    return tuple(catalog.read(body.blocks[0].body))


@pytest.mark.parametrize(
    "text",
    [
        'KeyManager "test" { plugin_data { path = "x" } }',
        '"KeyManager" "test" { plugin_data { path = "x" } }',
        'KeyManager { test { plugin_data { path = "x" } } }',
        'KeyManager "test" plugin_data { path = "x" }',
        'KeyManager = { test = { plugin_data = { path = "x" } } }',
        'KeyManager = [{ test = { plugin_data = { path = "x" } } }]',
    ],
)
async def test_every_way_to_write_a_plugin(text: str) -> None:
    (block,) = read(text)
    assert (block.type, block.name, block.enabled, block.position) == (
        "KeyManager",
        "test",
        True,
        hcl.Position("s.conf", 2),
    )
    catalog.check([block], {"KeyManager": catalog.Count(1, 1)}, BUILTINS, "s.conf")
    plugin = await catalog.load(block, BUILTINS, CONTEXT)
    assert isinstance(plugin, Plugin)
    assert plugin.settings == Settings(path="x")
    assert plugin.context is CONTEXT


def test_json_form() -> None:
    body = hcl.parse('{"plugins": {"KeyManager": [{"test": {"plugin_data": {"path": "x"}}}]}}', "s.json")
    (block,) = catalog.read(body.blocks[0].body)
    assert (block.type, block.name, block.data.source) == ("KeyManager", "test", '{"path": "x"}')


def test_order_disabled_and_external_plugins() -> None:
    blocks = read(
        'B "two" { enabled = false }\n'
        'A "one" { plugin_cmd = "/bin/x" plugin_args = ["-a", "b"] plugin_checksum = "ff" plugin_data { a = 1 } }'
    )
    assert [(block.type, block.name, block.enabled) for block in blocks] == [("B", "two", False), ("A", "one", True)]
    assert (blocks[1].command, blocks[1].args, blocks[1].checksum) == ("/bin/x", ("-a", "b"), "ff")
    assert (blocks[1].data_text, blocks[1].data.items) == ("a = 1", ())


def test_data_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.conf"
    file.write_text('\npath = "y"\nmisspelt = 1\n')
    (block,) = read(f'KeyManager "test" {{ plugin_data_file = "{file}" }}')
    with pytest.raises(ConfigurationError, match=f'^{file}:3: unknown key "misspelt" in KeyManager "test"$'):
        catalog.check([block], TYPES, BUILTINS, "s.conf")
    with pytest.raises(
        ConfigurationError,
        match=r"^s\.conf:2: failed to read plugin configuration: open .*/none: no such file or directory$",
    ):
        read(f'KeyManager "test" {{ plugin_data_file = "{tmp_path}/none" }}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'KeyManager "test" { plugin_dat { } }',
            '2: unknown key "plugin_dat" in KeyManager "test": did you mean "plugin_data"?',
        ),
        ('KeyManager "test" { }\nKeyManager "test" { }', '3: KeyManager "test" is configured twice: keep one block'),
        (
            'A "b" { plugin_data { }\nplugin_data_file = "x" }',
            '3: A "b": plugin_data and plugin_data_file exclude each other: keep one',
        ),
        ("\nKeyManager = 1", '3: expected a plugin such as KeyManager "disk" { … }, found "KeyManager" = …'),
        ('A "b" { enabled = 1 }', '2: A "b": enabled: expected true or false, without quotes, found 1'),
    ],
)
def test_faults_of_blocks(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read(text)
    assert str(error.value) == f"s.conf:{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('KeyManger "test" { }', 's.conf:2: unsupported plugin type "KeyManger": use one of KeyManager'),
        ('KeyManager "disc" { }', 's.conf:2: no built-in plugin "disc" for type "KeyManager": this version has test'),
        ('KeyManager "test" { }', 's.conf:2: KeyManager "test": path must be configured'),
        (
            'KeyManager "mine" { plugin_cmd = "/x" }',
            (
                's.conf:2: KeyManager "mine": external plugins (plugin_cmd) of this type are not available in this '
                "version: use a built-in one (external ones may be: none)"
            ),
        ),
        (
            'KeyManager "test" { plugin_data {\n  path = "x"\n  pth = "y" } }',
            's.conf:4: unknown key "pth" in KeyManager "test": did you mean "path"?',
        ),
    ],
)
async def test_faults_of_plugins(text: str, message: str) -> None:
    blocks = read(text)
    with pytest.raises(ConfigurationError) as error:
        catalog.check(blocks, TYPES, BUILTINS, "s.conf")
    assert str(error.value) == message


def test_every_fault_is_told() -> None:
    blocks = read('X "a" { }\nKeyManager "b" { }\nKeyManager "test" { enabled = false }')
    with pytest.raises(ConfigurationErrors) as errors:
        catalog.check(blocks, {"KeyManager": catalog.Count(), "DataStore": catalog.Count(1, 1)}, BUILTINS, "s.conf")
    assert [problem.line for problem in errors.value.problems] == [None, 2, 3]


@pytest.mark.parametrize(
    ("text", "types", "reason"),
    [
        ("", {"KeyManager": catalog.Count(1, 1)}, "enable exactly 1, not 0"),
        ('KeyManager "test" { enabled = false }', {"KeyManager": catalog.Count(1)}, "enable 1 or more, not 0"),
    ],
)
def test_numbers_of_plugins(text: str, types: dict[str, catalog.Count], reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        catalog.check(read(text), types, BUILTINS, "s.conf")
    assert str(error.value) == f"s.conf: plugins of type KeyManager: {reason}"


def test_too_many_plugins() -> None:
    assert catalog.Count(0, 1).fault(2) == "enable 1 or fewer, not 2"
    assert catalog.Count(0, 1).fault(1) is None
    assert catalog.SERVER["KeyManager"].fault(2) == "enable exactly 1, not 2"
    assert catalog.AGENT["WorkloadAttestor"].fault(0) == "enable 1 or more, not 0"


async def test_a_plugins_own_refusal_gets_its_place() -> None:
    (block,) = read('KeyManager "test" { plugin_data { path = "x" fail = true } }')
    with pytest.raises(ConfigurationError) as error:
        await catalog.load(block, BUILTINS, CONTEXT)
    assert str(error.value) == 's.conf:2: KeyManager "test": the device is not there'


async def test_builtins_are_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    builtins = {"KeyManager": {"memory": Builtin("keystores.memory:Configuration", "keystores.memory:load")}}
    (block,) = read('KeyManager "memory" { plugin_data { } }')
    manager = await catalog.load(block, builtins, CONTEXT)
    await manager.close()


def test_files_that_a_configuration_names_are_read_when_asked_for(tmp_path: Path) -> None:
    class Named(Settings, frozen=True, kw_only=True):
        def check_files(self) -> None:
            if not Path(self.path).exists():
                raise ConfigurationError(f"{self.path} is not there")

    globals()["Named"] = Named
    builtins = {"KeyManager": {"test": Builtin(f"{__name__}:Named", f"{__name__}:load")}}
    blocks = catalog.read(hcl.parse(f'KeyManager "test" {{ plugin_data {{ path = "{tmp_path}/x" }} }}', "a.conf"))
    catalog.check(blocks, TYPES, builtins, "a.conf")
    with pytest.raises(ConfigurationError, match=r"^a\.conf:1: .*/x is not there$"):
        catalog.check(blocks, TYPES, builtins, "a.conf", files=True)
    (tmp_path / "x").touch()
    catalog.check(blocks, TYPES, builtins, "a.conf", files=True)
