"""What a manufacturer left in a TPM's NV memory: certificates and templates, read without an authorization."""

from __future__ import annotations

from typing import Final

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPM2_PT_NV, TPMA_NV, TSS2_Exception

from keystores.tpm.device import Device
from keystores.tpm.responses import Meaning, meaning

LIMIT: Final = 16 << 10
"""Bytes of one index. More is no certificate."""
_PAGE: Final = 64
_LEAST_CHUNK: Final = 512
_SEQUENCE: Final = 0x30


def indices(esapi: ESAPI, first: int, last: int) -> list[int]:
    """The indices that are defined from `first` to `last`, ascending."""
    found: list[int] = []
    while first <= last:
        more, data = esapi.get_capability(TPM2_CAP.HANDLES, first, _PAGE)
        page = [int(handle) for handle in data.data.handles]
        found += [handle for handle in page if handle <= last]
        if not more or not page or page[-1] >= last:
            break
        first = page[-1] + 1
    return found


def read(device: Device, index: int) -> bytes:
    """The content of an index; empty for one that is not for everybody to read, is not written, or is too large.

    Sessions keep it whole on its way.
    """
    esapi = device.esapi
    handle = esapi.tr_from_tpmpublic(index)
    try:
        public, _ = esapi.nv_read_public(handle)
        attributes, size = int(public.nvPublic.attributes), int(public.nvPublic.dataSize)
        if not attributes & TPMA_NV.WRITTEN or size > LIMIT:
            return b""
        if attributes & TPMA_NV.AUTHREAD:
            by = handle
        elif attributes & TPMA_NV.OWNERREAD:
            by = ESYS_TR.OWNER
        else:
            return b""
        chunk = _chunk(esapi)
        data = b""
        while len(data) < size:
            part = esapi.nv_read(
                handle, min(chunk, size - len(data)), len(data), auth_handle=by, session1=device.session()
            )
            data += bytes(part)
        return data
    except TSS2_Exception as error:
        if meaning(int(error.rc)) is not Meaning.REFUSED:
            raise
        return b""
    finally:
        esapi.tr_close(handle)


def _chunk(esapi: ESAPI) -> int:
    """How much the TPM gives at once (TPM_PT_NV_BUFFER_MAX)."""
    _, found = esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT_NV.BUFFER_MAX, 1)
    told = found.data.tpmProperties
    if not len(told) or int(told[0].property) != TPM2_PT_NV.BUFFER_MAX:
        return _LEAST_CHUNK
    return max(_LEAST_CHUNK, int(told[0].value))


def elements(data: bytes) -> list[bytes]:
    """The DER SEQUENCEs at the beginning of `data`, one after the other; what follows them is padding."""
    found: list[bytes] = []
    while len(data) > 4 and data[0] == _SEQUENCE:
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            if not 0x81 <= size <= 0x83:
                break
            size = int.from_bytes(data[2:start])
        if start + size > len(data):
            break
        found.append(data[: start + size])
        data = data[start + size :]
    return found
