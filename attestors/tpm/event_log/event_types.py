"""Types of events, and well-known data (TCG PC Client Platform Firmware Profile 1.06, 10.4.1).

No digest covers an event's type, nor its name: whoever holds the log can write another one there. What a machine
booted is therefore read from data that hash to the digest, and a type only ever makes a reading narrower.
"""

from __future__ import annotations

from typing import Final

POST_CODE: Final = 0x1
NO_ACTION: Final = 0x3
SEPARATOR: Final = 0x4
ACTION: Final = 0x5
EVENT_TAG: Final = 0x6
S_CRTM_VERSION: Final = 0x8
IPL: Final = 0xD
EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EFI_VARIABLE_BOOT: Final = 0x80000002
EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EFI_ACTION: Final = 0x80000007
EFI_VARIABLE_AUTHORITY: Final = 0x800000E0

EFI_IMAGES: Final = frozenset({EFI_BOOT_SERVICES_APPLICATION, EFI_BOOT_SERVICES_DRIVER, EFI_RUNTIME_SERVICES_DRIVER})

SEPARATORS: Final = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff")
ERROR_SEPARATORS: Final = (b"\x01\x00\x00\x00", b"\x00\x00\x00\x01")
"""The value 1, in either order of bytes: something could not be measured (2.3.4)."""

EXIT_BOOT_SERVICES: Final = b"Exit Boot Services Invocation"
EXIT_SUCCEEDED: Final = b"Exit Boot Services Returned with Success"
EXIT_FAILED: Final = b"Exit Boot Services Returned with Failure"
DEBUG_MODE: Final = b"UEFI Debug Mode"
