"""Command lines as operators know them: the layout, streams and statuses are those of SPIRE 1.16."""

from datetime import timedelta

import pytest

from operations import output
from operations.errors import NotFound
from operations.flags import Command, FlagError, FlagSet, HelpRequested, Program, Run


class Recorder:
    """A command that notes what it was given."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def build(self, flags: FlagSet) -> Run:
        names = flags.strings("dns", "A name; repeatable")
        ttl = flags.integer("ttl", 600, "Seconds until it ends")
        admin = flags.boolean("admin", "If set, it is an admin")
        path = flags.string("socketPath", "/tmp/api.sock", "Path to the socket")

        def run(args: list[str]) -> int:
            self.seen = [names.value, ttl.value, ttl.given, admin.value, path.value, args]
            return 3

        return run


USAGE = """\
Usage of entry create:
  -admin
    \tIf set, it is an admin
  -dns value
    \tA name; repeatable
  -socketPath string
    \tPath to the socket (default "/tmp/api.sock")
  -ttl int
    \tSeconds until it ends (default 600)
"""

OVERVIEW = """\
Usage: spire-server [--version] [--help] <command> [<args>]

Available commands are:
    entry          
    healthcheck    Ask whether it serves
    local          

"""  # noqa: W291 the blanks are part of it


def _fail(_flags: FlagSet) -> Run:
    def run(_args: list[str]) -> int:
        raise NotFound("no such thing")

    return run


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def program(recorder: Recorder) -> Program:
    return Program(
        "spire-server",
        "1.16.0",
        [
            Command("entry create", "Add entries", recorder.build),
            Command("healthcheck", "Ask whether it serves", _fail, help_note=""),
            Command("local x509 show", "Shows", _fail),
        ],
    )


def test_values_in_every_form(program: Program, recorder: Recorder) -> None:
    status = program.run(["entry", "create", "-dns", "a", "--dns=b", "-admin", "-ttl", "0x10", "x", "-y"])
    assert status == 3
    assert recorder.seen == [("a", "b"), 16, True, True, "/tmp/api.sock", ["x", "-y"]]


def test_two_dashes_end_the_flags(program: Program, recorder: Recorder) -> None:
    assert program.run(["entry", "create", "-admin=false", "--", "-dns"]) == 3
    assert recorder.seen == [(), 600, False, False, "/tmp/api.sock", ["-dns"]]


@pytest.mark.parametrize(
    ("args", "status", "reason"),
    [
        (["-bogus"], 1, "flag provided but not defined: -bogus\n"),
        (["-dns"], 1, "flag needs an argument: -dns\n"),
        (["-ttl", "abc"], 1, 'invalid value "abc" for flag -ttl: parse error\n'),
        (
            ["-ttl", "99999999999999999999"],
            1,
            'invalid value "99999999999999999999" for flag -ttl: value out of range\n',
        ),
        (["-admin=maybe"], 1, 'invalid boolean value "maybe" for -admin: parse error\n'),
        (["---x"], 1, "bad flag syntax: ---x\n"),
        (["-=x"], 1, "bad flag syntax: -=x\n"),
        (["-h=1"], 1, ""),
    ],
)
def test_wrong_flags(
    program: Program, capsys: pytest.CaptureFixture[str], args: list[str], status: int, reason: str
) -> None:
    assert program.run(["entry", "create", *args]) == status
    assert capsys.readouterr() == ("", reason + USAGE)


def test_help_of_a_command(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["entry", "create", "-ttl", "5", "-h"]) == 0
    assert capsys.readouterr() == ("", USAGE + "flag: help requested\n")


@pytest.mark.parametrize(
    ("args", "status"), [([], 127), (["bogus"], 127), (["entry create"], 127), (["-bogus"], 127), (["-h"], 0)]
)
def test_overview(program: Program, capsys: pytest.CaptureFixture[str], args: list[str], status: int) -> None:
    assert program.run(args) == status
    assert capsys.readouterr() == ("", OVERVIEW)


@pytest.mark.parametrize("version", ["-v", "-version", "--version"])
def test_version_goes_to_standard_error(program: Program, capsys: pytest.CaptureFixture[str], version: str) -> None:
    assert program.run([version]) == 0
    assert capsys.readouterr() == ("", "1.16.0\n")


@pytest.mark.parametrize(("args", "status"), [(["entry"], 1), (["entry", "bogus"], 1), (["entry", "-h"], 0)])
def test_group_prints_the_usage_of_its_commands(
    program: Program, capsys: pytest.CaptureFixture[str], args: list[str], status: int
) -> None:
    assert program.run(args) == status
    summary = "spire-server entry is a group: add one of its commands.\n\nSubcommands:\n    create    Add entries\n"
    assert capsys.readouterr() == ("", USAGE + summary)


def test_group_of_groups(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["local"]) == 1
    assert capsys.readouterr().err.endswith("Subcommands:\n    x509    \n")


def test_flags_before_the_command(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["-ttl", "entry", "create"]) == 1
    reason = "Flags go behind the command: spire-server entry create -flag …\n\n"
    assert capsys.readouterr().err == reason + USAGE + "flag: help requested\n"


def test_expected_errors_are_one_line(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["healthcheck"]) == 1
    assert capsys.readouterr() == ("", "Error: no such thing\n")


def test_flag_set_alone(capsys: pytest.CaptureFixture[str]) -> None:
    flags = FlagSet("fetch x509")
    timeout = flags.duration("timeout", timedelta(seconds=5), "Time to wait")
    audience = flags.comma_strings("audience", "names, by commas")
    named = flags.string("write", "", "Write to `path`\nwhen given")
    short = flags.boolean("q", "be quiet", default=True)
    assert flags.parse(["-timeout", "1m", "-audience", "a,b", "rest"]) == ["rest"]
    assert (timeout.value, audience.value) == (timedelta(minutes=1), ("a", "b"))
    assert (named.given, short.value) == (False, True)
    assert flags.usage().splitlines() == [
        "Usage of fetch x509:",
        "  -audience value",
        "    \tnames, by commas",
        "  -q\tbe quiet (default true)",
        "  -timeout value",
        "    \tTime to wait (default 5s)",
        "  -write path",
        "    \tWrite to path",
        "    \twhen given",
    ]
    with pytest.raises(FlagError, match="missing unit"):
        flags.parse(["-timeout", "5"])
    with pytest.raises(HelpRequested):
        flags.parse(["-help"])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "value"), [("010", 8), ("0o10", 8), ("0b11", 3), ("1_000", 1000), ("-0x1F", -31), ("+5", 5), ("0", 0)]
)
def test_integers_in_go_notation(text: str, value: int) -> None:
    flags = FlagSet("x")
    number = flags.integer("n", 0, "")
    flags.parse([f"-n={text}"])
    assert number.value == value


@pytest.mark.parametrize("text", ["", "1.5", "09", "--5", "0x", " 5", "five"])
def test_no_integers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = FlagSet("x")
    flags.integer("n", 0, "")
    with pytest.raises(FlagError):
        flags.parse([f"-n={text}"])
    capsys.readouterr()


def test_output_flag(capsys: pytest.CaptureFixture[str]) -> None:
    flags = FlagSet("x")
    form = output.add_flag(flags)
    assert form.value == output.PRETTY
    flags.parse(["-output", "JSON", "-output", "json"])
    assert form.value == output.JSON
    with pytest.raises(FlagError, match='the output format has already been set to "json"'):
        flags.parse(["-output", "pretty"])
    flags = FlagSet("x")
    output.add_flag(flags)
    with pytest.raises(FlagError, match='bad formatter flag: unknown format option: "foo"'):
        flags.parse(["-output", "foo"])
    assert "pretty, for people, or json, one line for programs" in capsys.readouterr().err


def test_a_long_description_fits_a_terminal() -> None:
    flags = FlagSet("")
    flags.string(
        "path",
        "/a folder/api.sock",
        f"First line, {'word ' * 13}then more\n- second line, long enough to leave some room",
    )
    assert flags.usage().splitlines() == [
        "Usage:",
        "  -path string",
        f"    \tFirst line, {'word ' * 11}word",
        "    \tword then more",
        "    \t- second line, long enough to leave some room",
        '    \t(default "/a folder/api.sock")',
    ]


def test_groups_have_a_line_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    program = Program("p", "1", [Command("a b c", "See", _fail)], {"a": "First", "a b": "Second"})
    assert program.run(["-h"]) == 0
    assert capsys.readouterr().err.endswith("\n    a    First\n\n")
    assert program.run(["a", "-h"]) == 0
    assert capsys.readouterr().err.endswith("Subcommands:\n    b    Second\n")
