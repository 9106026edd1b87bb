from __future__ import annotations

import warnings

import pytest
from cryptography import x509

from identity import der
from operations.errors import InvalidArgument
from tests.simulators.pki import Authority, csr, ec_key


def numbered(first: int) -> bytes:
    """A certificate whose serial number begins with this octet."""
    made = bytearray(Authority.root().der)
    length = made.index(b"\xa0\x03\x02\x01\x02\x02") + 6
    made[length + 1] = first
    return bytes(made)


@pytest.mark.parametrize("first", [0x01, 0x7F])
def test_positive_serial_numbers(first: int) -> None:
    assert der.certificate(numbered(first)).serial_number > 0


@pytest.mark.parametrize("first", [0x80, 0xFE])
def test_a_negative_serial_number_is_refused(first: int) -> None:
    """RFC 5280, 4.1.2.2; SPIRE's parser refuses it too."""
    assert x509.load_der_x509_certificate(numbered(first)).serial_number < 0
    with pytest.raises(InvalidArgument, match="its serial number is negative"):
        der.certificate(numbered(first))


def test_a_serial_number_of_zero_is_taken_without_a_word() -> None:
    """Some old roots have it."""
    made = Authority.root().der
    length = made.index(b"\xa0\x03\x02\x01\x02\x02") + 6
    zero = bytes([1, 0])
    shorter = made[length] - 1
    body = made[8:length] + zero + made[length + 1 + made[length] :]
    outer = int.from_bytes(made[2:4]) - shorter
    inner = int.from_bytes(made[6:8]) - shorter
    data = b"\x30\x82" + outer.to_bytes(2) + b"\x30\x82" + inner.to_bytes(2) + body
    with warnings.catch_warnings(record=True) as told:
        assert der.certificate(data).serial_number == 0
    assert not told


def test_a_signature_has_no_unused_bits() -> None:
    """SPIRE's parser shifts them out, and refuses what is left."""
    made = csr(ec_key())
    while made[-1] & 1:  # with an odd number at its end it is no DER
        made = csr(ec_key())
    request = x509.load_der_x509_csr(made)
    assert der.proves_possession(request, made)
    changed = bytearray(made)
    changed[-len(request.signature) - 1] = 1
    request = x509.load_der_x509_csr(bytes(changed))
    assert request.is_signature_valid
    assert not der.proves_possession(request, bytes(changed))
