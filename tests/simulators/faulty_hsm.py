"""SoftHSM with faults on demand: a PKCS#11 module that forwards every function, and does what a script says.

The module is loaded by whoever is tested, in as many processes and threads as that has; it finds the script in the
folder that FAULTY_PKCS11 names. A fault is planted for functions, and acts from then on, or on some of their calls,
until it is lifted. The files that stand behind this are described in faulty_pkcs11/script.h.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.simulators.softhsm import MODULE

CKR_GENERAL_ERROR = 0x05
CKR_FUNCTION_FAILED = 0x06
CKR_ATTRIBUTE_TYPE_INVALID = 0x12
CKR_ACTION_PROHIBITED = 0x1B
CKR_DEVICE_ERROR = 0x30
CKR_DEVICE_MEMORY = 0x31
CKR_DEVICE_REMOVED = 0x32
CKR_ENCRYPTED_DATA_INVALID = 0x40
CKR_KEY_HANDLE_INVALID = 0x60
CKR_MECHANISM_INVALID = 0x70
CKR_PIN_INCORRECT = 0xA0
CKR_SESSION_CLOSED = 0xB0
CKR_SESSION_COUNT = 0xB1
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TEMPLATE_INCOMPLETE = 0xD0
CKR_TEMPLATE_INCONSISTENT = 0xD1
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_USER_NOT_LOGGED_IN = 0x101
CKR_CRYPTOKI_NOT_INITIALIZED = 0x190

SOURCES = Path(__file__).with_name("faulty_pkcs11")
IN_A_SESSION = (
    "C_GetSessionInfo",
    "C_Login",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_DestroyObject",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_SignInit",
    "C_Sign",
    "C_GenerateKeyPair",
)
"""What a key manager calls with a session's handle."""
OF_THE_TOKEN = ("C_GetTokenInfo", "C_OpenSession")


@cache
def module() -> Path:
    """The compiled module. It is made once for its sources, and put in its place whole: tests may run side by side."""
    sources = sorted(SOURCES.glob("*.[ch]"))
    name = hashlib.sha256(b"\0".join([MODULE.encode(), *(path.read_bytes() for path in sources)])).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"faulty-pkcs11-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    made = folder / f"faulty-{name}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            compiled = Path(beside) / "faulty.so"
            flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
            where = ["-I/usr/include/p11-kit-1", f'-DREAL_MODULE="{MODULE}"', "-o", str(compiled)]
            units = [str(path) for path in sources if path.suffix == ".c"]
            subprocess.run(["gcc", *flags, *where, *units, "-ldl"], check=True, timeout=120)
            compiled.replace(made)
    return made


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in the script, or one in each of several functions that count their calls together."""

    id: str
    folder: Path

    @property
    def hits(self) -> int:
        """Calls since it was planted, whether it acted on them or not."""
        for name in (self.id, f"{self.id}.lifted"):
            try:
                return (self.folder / "hits" / name).stat().st_size
            except FileNotFoundError:
                continue
        raise AssertionError(f"no fault {self.id} was planted")

    def lift(self) -> None:
        """End it. Calls that hang by it go on."""
        here = self.folder / "hits" / self.id
        if here.exists():
            here.rename(here.with_name(f"{self.id}.lifted"))

    def wait(self, hits: int = 1, seconds: float = 60) -> None:
        """Wait until that many calls met it."""
        end = time.monotonic() + seconds
        while self.hits < hits:
            assert time.monotonic() < end, f"waited {seconds:g} s for call {hits} of fault {self.id}"
            time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class FaultyHsm:
    """The script in one folder, and what the module wrote down there."""

    folder: Path
    _numbers: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def create(cls, folder: Path) -> FaultyHsm:
        for name in ("faults", "hits", "begun", "ended", "sessions"):
            (folder / name).mkdir(parents=True)
        return cls(folder)

    @property
    def module_path(self) -> str:
        return str(module())

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the script."""
        return {"FAULTY_PKCS11": str(self.folder)}

    @contextmanager
    def installed(self) -> Generator[FaultyHsm]:
        """Have this process, and those it starts, follow the script. At the end nothing hangs any more."""
        before = os.environ.get("FAULTY_PKCS11")
        os.environ.update(self.environment)
        try:
            yield self
        finally:
            self.lift_all()
            if before is None:
                del os.environ["FAULTY_PKCS11"]
            else:
                os.environ["FAULTY_PKCS11"] = before

    def plant(
        self,
        functions: str | Iterable[str],
        action: str,
        *arguments: str | int,
        after: bool = False,
        skip: int = 0,
        times: int = 0,
    ) -> Fault:
        """Have calls of these functions meet a fault: the first `skip` do not, then `times` do, or all when it is 0.

        `after` lets the call do its work first, so that only its answer is lost. Numbers are written in hex, except
        those of `sleep` and `limit`. What only changes an answer says so below; it takes `after`'s place itself.

        return CODE         this CKR code
        hang                no answer until the fault is lifted
        sleep MICROSECONDS  a slow answer
        crash segv|abort|exit
        kill self|parent    SIGKILL to the process, or to the one that started it
        forget              every session is closed, and handles from before name other keys from now on
        heal FAULT          the fault of that id is lifted
        wrong, truncated, empty, repeated, der   what C_Sign makes of its signature
        swap                C_SignInit takes another private key
        empty               C_GetSlotList finds no token, C_FindObjects no object
        twice               C_FindObjects finds what it found once more
        limit MOST MOST_RW  C_GetTokenInfo tells of so many sessions, C_OpenSession opens no more
        unlockable          C_Initialize answers CKR_CANT_LOCK to whoever wants locking
        lack MECHANISM      C_SignInit, C_GetMechanismList and C_GetMechanismInfo know it not
        refuse CODE ATTRIBUTE [VALUE]  C_GenerateKeyPair refuses it in a private key's template
        require CODE ATTRIBUTE [VALUE] C_GenerateKeyPair misses it there
        attribute ATTRIBUTE BYTES      C_GetAttributeValue reads these bytes
        point raw|bits      C_GetAttributeValue gives a bare CKA_EC_POINT, or one in a BIT STRING
        manufacturer, model, description TEXT    C_GetInfo and C_GetTokenInfo say it
        """
        fault = Fault(f"{os.getpid()}-{next(iter(self._numbers))}", self.folder)
        when = "after" if after or action in _ANSWERS else "before"
        words = [_word(action, argument) for argument in arguments]
        line = " ".join([fault.id, str(skip), str(times), when, action, *words])
        for function in [functions] if isinstance(functions, str) else functions:
            path = self.folder / "faults" / function
            former = path.read_text() if path.exists() else ""
            living = [each for each in former.splitlines() if (self.folder / "hits" / each.split()[0]).exists()]
            beside = path.with_name(f".{function}")
            beside.write_text("".join(f"{each}\n" for each in [*living, line]))
            beside.replace(path)
        (self.folder / "hits" / fault.id).touch()
        return fault

    @contextmanager
    def planted(
        self,
        functions: str | Iterable[str],
        action: str,
        *arguments: str | int,
        after: bool = False,
        skip: int = 0,
        times: int = 0,
    ) -> Generator[Fault]:
        """`plant`, lifted at the end."""
        fault = self.plant(functions, action, *arguments, after=after, skip=skip, times=times)
        try:
            yield fault
        finally:
            fault.lift()

    @contextmanager
    def token_removed(self) -> Generator[None]:
        """The token is pulled out, and its sessions with it."""
        with (
            self.planted("C_GetSlotList", "empty"),
            self.planted(OF_THE_TOKEN, "return", CKR_TOKEN_NOT_PRESENT),
            self.planted(IN_A_SESSION, "return", CKR_DEVICE_REMOVED),
            self.planted(IN_A_SESSION, "forget", times=1),
        ):
            yield

    def lift_all(self) -> None:
        for path in (self.folder / "hits").iterdir():
            if path.suffix != ".lifted":
                Fault(path.name, self.folder).lift()

    def begun(self, function: str) -> int:
        """Calls of the function, whatever became of them. Those that only ask for a length do not count."""
        path = self.folder / "begun" / function
        return path.stat().st_size if path.exists() else 0

    def ended(self, function: str) -> list[int]:
        """The CKR codes of the function's calls that returned."""
        path = self.folder / "ended" / function
        return [int(line, 16) for line in path.read_text().split()] if path.exists() else []

    @property
    def overlaps(self) -> int:
        """Calls that began while another one was in the module, in the same process."""
        path = self.folder / "overlaps"
        return path.stat().st_size if path.exists() else 0

    @property
    def sessions(self) -> int:
        """Sessions that are open now, or were when their process died."""
        return sum(1 for _ in (self.folder / "sessions").iterdir())


_ANSWERS = frozenset(
    {
        *("wrong", "truncated", "empty", "repeated", "der", "twice", "limit", "attribute", "point"),
        *("manufacturer", "model", "description"),
    }
)
_DECIMAL = frozenset({"sleep", "limit"})


def _word(action: str, argument: str | int) -> str:
    if isinstance(argument, str):
        return argument
    return str(argument) if action in _DECIMAL else f"{argument:x}"
