"""Whatever a registry sends or names: a typed refusal, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.sigstore import judgement, payloads
from attestors.sigstore.layers import layers_of
from attestors.sigstore.references import Reference
from operations.errors import InvalidArgument, Refused
from tests.simulators.sigstore import BUNDLE, CERTIFICATE, CHAIN, SIGNATURE, Sigstore
from transport.web.urls import Url

SIGSTORE = Sigstore()
SIGNED = SIGSTORE.signature("sha256:" + "ab" * 32)
ATTESTED = SIGSTORE.attestation("sha256:" + "ab" * 32)
KEY = SIGSTORE.root_key.public_key()

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ("layers", "annotations", "digest", "size", "critical", "image", "payload", "signatures", "x")
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
ANY = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100)


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_documents(data: bytes) -> None:
    try:
        layers = layers_of(data)
    except Refused:
        layers = []
    for layer in layers:
        try:
            judgement.read(layer, data)
        except Refused:
            continue
    with pytest.raises(Refused):
        payloads.require_attestation(data, KEY, "sha256:x")
    with pytest.raises(Refused):
        payloads.require_signature(data, "AAAA", KEY, "sha256:x")


@given(st.sampled_from((SIGNATURE, CERTIFICATE, CHAIN, BUNDLE)), st.integers(0, 4000), st.characters())
@settings(max_examples=300, deadline=None)
def test_annotations_with_one_character_changed(name: str, place: int, character: str) -> None:
    value = SIGNED.annotations[name]
    place %= len(value)
    annotations = {**SIGNED.annotations, name: value[:place] + character + value[place + 1 :]}
    layer = {"digest": "sha256:x", "size": 1, "annotations": annotations}
    try:
        (parsed,) = layers_of(json.dumps({"layers": [layer]}).encode())
        judgement.read(parsed, SIGNED.payload)
    except Refused:
        return


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=1))
@settings(max_examples=300, deadline=None)
def test_an_envelope_with_one_byte_changed(place: int, byte: bytes) -> None:
    place %= len(ATTESTED.payload)
    changed = ATTESTED.payload[:place] + byte + ATTESTED.payload[place + 1 :]
    with pytest.raises(Refused):
        payloads.require_attestation(changed, KEY, "sha256:" + "ab" * 32)


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9./:@_-]{0,60}", fullmatch=True))
@settings(max_examples=500, deadline=None)
def test_names(text: str) -> None:
    for parse in (Reference.parse, Url.parse, Url.parse("https://registry.example/v2/").join):
        shown = ""
        try:
            shown = str(parse(text))
        except InvalidArgument as error:
            shown = str(error)
        assert shown.isprintable()
