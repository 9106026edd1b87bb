import json

import pytest

from generated.spire.api.types import entry_pb2, selector_pb2, spiffeid_pb2, status_pb2
from operations import output


def test_json_is_one_line_with_names_of_the_proto_files(capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_pb2.Entry(id="e", expires_at=5, selectors=[selector_pb2.Selector(type="unix", value="uid:0<1>&")])
    output.print_json(entry)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert " " not in printed
    assert '"value":"uid:0\\u003c1\\u003e\\u0026"' in printed
    values = json.loads(printed)
    assert list(values) == sorted(values)
    assert values["expires_at"] == "5"
    assert values["x509_svid_ttl"] == 0
    assert values["dns_names"] == []
    assert values["store_svid"] is False
    assert "spiffe_id" not in values


def test_several_messages_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = spiffeid_pb2.SPIFFEID(trust_domain="a.org"), status_pb2.Status(code=5, message="ü")
    output.print_json(one, two)
    assert capsys.readouterr().out == '[{"path":"","trust_domain":"a.org"},{"code":5,"message":"ü"}]\n'


def test_no_message_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json()
    assert capsys.readouterr().out == ""


def test_pretty_is_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    status = status_pb2.Status(code=1)
    output.print_result(output.PRETTY, status, pretty=lambda: print("Code: 1"))
    output.print_result(output.JSON, status, pretty=lambda: print("Code: 1"))
    assert capsys.readouterr().out == 'Code: 1\n{"code":1,"message":""}\n'
