"""Images from a registry, verified: the selectors they give, and to whom."""

from __future__ import annotations

import asyncio
import ipaddress
from datetime import timedelta

import pytest
from cryptography import x509

from attestors.sigstore.configuration import Configuration
from operations.errors import ConfigurationError, InvalidArgument, Refused
from tests.simulators.signed_images import ANYBODY, WITH_ATTESTATIONS, House
from tests.simulators.sigstore import (
    BUNDLE,
    ISSUER,
    SIGNATURE,
    SUBJECT,
    Identity,
    Sigstore,
)


async def test_selectors_in_spires_order(house: House) -> None:
    digest = house.registry.push_image()
    signature = house.sigstore.signature(digest)
    house.registry.attach(digest, signature)
    house.registry.attach(digest, house.sigstore.attestation(digest), suffix="att")
    found = await house.verifier(WITH_ATTESTATIONS).verify(house.image(digest))
    expected = ["image-signature:verified", "image-attestations:verified", *house.details(signature)]
    assert list(found) == expected


async def test_each_signature_that_counts_gives_its_own(house: House) -> None:
    digest = house.registry.push_image()
    first = house.sigstore.signature(digest)
    other = Identity(subject="dev@example.com", issuer="https://accounts.google.com")
    second = house.sigstore.signature(digest, house.sigstore.signer(other))
    nobodys = Sigstore().signature(digest)
    house.registry.attach(digest, first, nobodys, second)
    found = await house.verifier(ANYBODY).verify(house.image(digest))
    theirs = house.details(second, "dev@example.com", "https://accounts.google.com")
    assert list(found) == ["image-signature:verified", *house.details(first), *theirs]
    assert len(await house.verifier().verify(house.image(digest))) == 8


async def test_without_a_log_there_are_no_selectors_of_it(house: House) -> None:
    digest = house.registry.push_image()
    # Nothing tells when it was signed, so its certificate has to be in force now, however long the tests before took.
    signer = house.sigstore.signer(Identity(lifetime=timedelta(days=1)))
    signature = house.sigstore.signature(digest, signer).without(BUNDLE)
    house.registry.attach(digest, signature)
    configuration = Configuration(ignore_tlog=True, ignore_attestations=True)
    found = await house.verifier(configuration).verify(house.image(digest))
    assert list(found) == [
        "image-signature:verified",
        f"image-signature-subject:{SUBJECT}",
        f"image-signature-issuer:{ISSUER}",
        f"image-signature-value:{signature.annotations[SIGNATURE]}",
    ]


async def test_images_to_skip_are_not_asked_about(house: House) -> None:
    digest = house.registry.push_image()
    verifier = house.verifier(Configuration(skipped_images=(house.image(digest),)))
    assert list(await verifier.verify(house.image(digest))) == []
    assert house.server.asked == []


async def test_the_second_time_nobody_is_asked(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    verifier = house.verifier()
    first = await verifier.verify(house.image(digest))
    asked = len(house.server.asked)
    assert await verifier.verify(house.image(digest)) == first
    assert len(house.server.asked) == asked


async def test_a_refusal_is_remembered_for_a_moment_only(house: House) -> None:
    digest = house.registry.push_image()
    refusing = house.verifier()
    for _ in range(2):
        with pytest.raises(Refused, match="failed to verify signatures: no signatures found"):
            await refusing.verify(house.image(digest))
    assert sum(path.endswith(".sig") for path in house.server.paths()) == 1
    house.registry.attach(digest, house.sigstore.signature(digest))
    async with asyncio.timeout(120):
        while True:
            try:
                assert len(await refusing.verify(house.image(digest))) == 8
                return
            except Refused:
                await asyncio.sleep(0.2)


async def test_a_tag_is_looked_up_each_time(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    verifier = house.verifier()
    assert len(await verifier.verify(f"{house.server.host}/app:latest")) == 8
    assert len(await verifier.verify(f"{house.server.host}/app:latest")) == 8
    house.registry.push_image("another")
    with pytest.raises(Refused, match="no signatures found"):
        await verifier.verify(f"{house.server.host}/app:latest")
    with pytest.raises(Refused, match="image tag not found"):
        await verifier.verify(f"{house.server.host}/app:missing")
    with pytest.raises(InvalidArgument, match="could not parse reference"):
        await verifier.verify("nginx@sha256:1")


@pytest.mark.parametrize(
    ("allowed", "good"),
    [
        ({ISSUER: (SUBJECT,)}, True),
        ({ISSUER: ("nobody", SUBJECT)}, True),
        ({"https://token.*": ("^https://github.com/example/",)}, True),
        ({ISSUER: ("github.com/[a-z]+/app",)}, True),
        ({"": (SUBJECT,)}, True),
        ({ISSUER: ("",)}, True),
        ({ISSUER: (SUBJECT[:-1],)}, False),
        ({ISSUER: (f"^{SUBJECT}x$",)}, False),
        ({"https://accounts.google.com": (SUBJECT,)}, False),
        ({"https://accounts.google.com": (".*",), ISSUER: ("other",)}, False),
    ],
)
async def test_identities(house: House, allowed: dict[str, tuple[str, ...]], *, good: bool) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    verifier = house.verifier(Configuration(allowed_identities=allowed, ignore_attestations=True))
    if good:
        assert len(await verifier.verify(house.image(digest))) == 8
        return
    with pytest.raises(Refused, match="none of the expected identities matched what was in the certificate"):
        await verifier.verify(house.image(digest))


NAMES: dict[str, tuple[list[x509.GeneralName], str]] = {
    "URI before Fulcio's own": (
        [
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7"), b"\x0c\x05alice"),
            x509.UniformResourceIdentifier("https://ci"),
        ],
        "https://ci",
    ),
    "Fulcio's own": ([x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7"), b"\x0c\x05alice")], "alice"),
    "DNS first": (
        [x509.RFC822Name("a@b.example"), x509.IPAddress(ipaddress.ip_address("10.0.0.1")), x509.DNSName("b.example")],
        "b.example",
    ),
    "address": ([x509.IPAddress(ipaddress.ip_address("2001:db8::1"))], "2001:db8::1"),
}


@pytest.mark.parametrize("kind", NAMES)
async def test_the_subject_is_the_first_name(house: House, kind: str) -> None:
    names, subject = NAMES[kind]
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest, house.sigstore.signer(Identity(names=names))))
    assert f"image-signature-subject:{subject}" in await house.verifier(ANYBODY).verify(house.image(digest))


async def test_an_issuer_in_the_newer_form_only(house: House) -> None:
    digest = house.registry.push_image()
    signer = house.sigstore.signer(Identity(issuer="", issuer_v2=ISSUER))
    house.registry.attach(digest, house.sigstore.signature(digest, signer))
    assert f"image-signature-issuer:{ISSUER}" in await house.verifier().verify(house.image(digest))


async def test_checks_that_are_turned_off_are_not_made(house: House) -> None:
    digest = house.registry.push_image()
    signature = house.sigstore.signature(digest, house.sigstore.signer(Identity(scts=0)))
    house.registry.attach(digest, signature)
    configuration = Configuration(ignore_sct=True, ignore_attestations=True)
    assert len(await house.verifier(configuration).verify(house.image(digest))) == 8


@pytest.mark.parametrize("kind", ["dsse", "intoto 0.0.1", "intoto 0.0.2"])
async def test_attestations(house: House, kind: str) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    bad = house.sigstore.attestation("sha256:" + "ab" * 32)
    house.registry.attach(digest, bad, house.sigstore.attestation(digest, kind=kind), suffix="att")
    assert "image-attestations:verified" in await house.verifier(WITH_ATTESTATIONS).verify(house.image(digest))


async def test_files_of_trust_that_cannot_be_used_end_the_start(house: House) -> None:
    for name in ("SIGSTORE_ROOT_FILE", "SIGSTORE_REKOR_PUBLIC_KEY", "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE"):
        path = house.environment[name]
        for content, reason in ((None, "cannot be read: No such file or directory"), (b"x", "cannot be used")):
            house.environment[name] = f"{path}.bad"
            if content is not None:
                with open(f"{path}.bad", "wb") as file:  # noqa: ASYNC230, PTH123 - a test's own file
                    file.write(content)
            with pytest.raises(ConfigurationError, match=f"{name} names .*{reason}"):
                await house.verifier().prepare()
        house.environment[name] = path
    await house.verifier().prepare()
