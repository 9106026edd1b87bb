"""Agent path templates: what Go makes of them, and what is refused when."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.agent_path import Template, Value, agent_id
from attestors.agent_path.values import Texts
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument

# Templates, and what SPIRE 1.16's own template package, run on DATA, made of each: a text, or a refusal when it was
# read ("parse") or executed ("render").
CASES: list[dict[str, str]] = json.loads((Path(__file__).parent / "agent_path_cases.json").read_text())


def data() -> dict[str, Value]:
    return {
        "PluginName": "x509pop",
        "TrustDomain": "example.org",
        "Empty": "",
        "Fingerprint": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "Subject": {
            "CommonName": "Web-01.prod.example.org",
            "Organization": ["Acme Inc", "Sub Org"],
            "Country": [],
        },
        "DNSNames": ["b.example.org", "a.example.org", "b.example.org"],
        "URISanSelectors": Texts({"cluster": "east/1", "zone": "z2"}),
        "Number": 42,
        "Negative": -7,
        "Yes": True,
        "No": False,
        "Nil": None,
        "Bytes": bytes((1, 171, 255)),
        "Float": 2.5,
        "Words": "Now is  the time for all good men",
        "Name": "HTTPServer2xx_fooBar-baz",
        "Utf": "Größe ñandú",
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["template"])[:60])
def test_it_renders_as_in_go(case: dict[str, str]) -> None:
    if "want" in case:
        assert Template.parse(case["template"]).render(data()) == case["want"]
    elif case["refused"] == "parse":
        with pytest.raises(InvalidArgument):
            Template.parse(case["template"])
    else:
        # What Go finds out at each attestation is found out at the start where that can be.
        with pytest.raises(InvalidArgument):
            Template.parse(case["template"]).render(data())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ env `HOME` }}", 'function "env" not defined'),
        ("{{ trunc .Fingerprint }}", "wrong number of args for trunc: want 2 got 1"),
        ("{{ .A | regexFind `(` }}", 'regular expression "(" cannot be used'),
        ("{{ .A", "unclosed action"),
        ("{{ if .A }}", "{{if}} has no {{end}}"),
        ("{{ $x }}", 'undefined variable "$x"'),
        ('{{ define "x" }}{{ end }}', "not available in agent path templates"),
        ("{{ range .A }}{{ break }}{{ end }}", "{{break}} is not available"),
        ('{{ "\\d" }}', "unknown escape"),
        ("{{ .A | .B }}", "only a function takes what comes before |"),
        ("{{ (((", "unclosed action"),
        ("{{ " + ".A" * 5000 + " }}", "more than 256 words"),
        ("{{ .A" + " | upper" * 5000 + " }}", "more than 256 words"),
        ("{{ 1e999 }}", "bad constant 1e999"),
        ("{{ 99999999999999999999 }}", "too large a number"),
        ("{{ if .A }}" * 100 + "{{ end }}" * 100, "nested deeper"),
        ("{{ " + "(" * 100 + ".A" + ")" * 100 + " }}", "nested deeper"),
    ],
)
def test_what_can_never_work_is_refused_when_it_is_read(template: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        Template.parse(template)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ .Missing }}", 'there is no "Missing"; there are Bytes, DNSNames'),
        ("{{ .Subject.OU }}", 'there is no "OU"; there are CommonName, Country, Organization'),
        ("{{ .Fingerprint.Missing }}", "can't evaluate field Missing in a string"),
        ("{{ .Nil.Missing }}", "can't evaluate field Missing in a nil"),
        ("{{ upper .Number }}", "upper: expected a string, found a int"),
        ("{{ index .DNSNames 7 }}", "index out of range: 7, of 3"),
        ("{{ repeat 100000000 .Fingerprint }}", "repeat: the result would be longer"),
        ("{{ seq 1 100000000 }}", "seq: the result would be longer"),
        ("{{ range 100000000 }}{{ end }}", "range over 100000000 is too long"),
        ('{{ fail "not this one" }}', "not this one"),
    ],
)
def test_what_the_data_does_not_have(template: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        Template.parse(template).render(data())
    assert message in str(error.value)


def test_the_names_that_a_template_asks_for() -> None:
    text = "{{ .A.B }}{{ with .C }}{{ .D }}{{ $.E }}{{ end }}{{ range .F }}{{ .G }}{{ else }}{{ .H }}{{ end }}"
    text += "{{ if eq (index .I 0) .J }}{{ .K | upper }}{{ end }}{{ $x := .L }}{{ $x.M }}{{ (dict).N }}"
    assert Template.parse(text).root_fields() == set("ACEFHIJKL")


def test_a_regular_expression_takes_time_in_proportion_to_its_text() -> None:
    template = Template.parse("{{ regexMatch `^(a+)+$` .A }}")
    began = time.monotonic()
    assert template.render({"A": "a" * 50_000 + "b"}) == "false"
    assert time.monotonic() - began < 5


def test_the_deepest_that_is_allowed() -> None:
    deep: dict[str, Value] = {}
    for _ in range(120):
        deep = {"A": deep}
    assert Template.parse("{{ if" + " .A" + ".A" * 119 + " }}x{{ else }}empty{{ end }}").render(deep) == "empty"
    assert Template.parse("{{ " + "(upper " * 60 + "`a`" + ")" * 60 + " }}").render({}) == "A"
    assert Template.parse("{{ `a`" + " | upper" * 60 + " }}").render({}) == "A"
    assert Template.parse("{{ if true }}" * 60 + "x" + "{{ end }}" * 60).render({}) == "x"


def test_an_agent_has_its_id_in_the_agents_namespace() -> None:
    domain = TrustDomain("example.org")
    made = agent_id(domain, Template.parse("/{{ .PluginName }}/{{ .Fingerprint | trunc 4 }}"), data())
    assert str(made) == "spiffe://example.org/spire/agent/x509pop/0a1b"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ .PluginName }}", "path must have a leading slash"),
        ("", "path must have a leading slash|cannot have a trailing slash"),
        ("/a/", "cannot have a trailing slash"),
        ("/a/../b", "cannot contain dot segments"),
        ("/{{ .Words }}", "characters are limited"),
        ("/{{ .Empty }}/b", "cannot contain empty segments"),
        ("/{{ repeat 600 .Fingerprint }}", "longer than 2048"),
    ],
)
def test_a_path_that_no_id_can_have(template: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as error:
        agent_id(TrustDomain("example.org"), Template.parse(template), data())
    assert "invalid agent path suffix" in str(error.value)


_WORDS = st.sampled_from(
    [
        *("{{", "}}", "{{-", "-}}", "{{/*", "*/}}", "(", ")", "|", ",", ":=", "=", "$x", "$", ".", ".A", " ", '"s"'),
        *("`r`", "'c'", "1", "-2", "0x", "1.5", "if", "else", "end", "range", "with", "upper", "trunc", "dict", "list"),
        *("index", "printf", "and", "nil", "true", "regexFind", "slice", "text", "\\", '"', "`", "é", "\n"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_WORDS, max_size=14).map("".join) | st.text(max_size=40).map(lambda text: "{{" + text + "}}"))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidArgument):
        Template.parse(text).render({"A": "a"})


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=6) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted({case["template"] for case in CASES if "want" in case})), st.data())
def test_templates_meet_any_data(template: str, chosen: st.DataObject) -> None:
    strange = {name: chosen.draw(_VALUES, name) for name in data()}
    with suppress(InvalidArgument):
        Template.parse(template).render(strange)
