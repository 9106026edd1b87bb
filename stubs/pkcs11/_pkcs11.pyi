from typing import Self

from pkcs11.types import Slot

class lib:  # noqa: N801 - the library's name
    def __new__(cls, so: str) -> Self: ...
    def get_slots(self, token_present: bool = ...) -> list[Slot]: ...
