"""What python-pkcs11 does not offer, by ctypes: C_Initialize with arguments, what library, token and session say of
themselves, and C_Login on a session that is open already, which is not undone when that session is closed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

CKF_OS_LOCKING_OK = 2
CKU_USER = 1
CKR_OK = 0
CKR_CANT_LOCK = 0x0A
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_USER_PIN_NOT_INITIALIZED = 0x102
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
CKS_USER = frozenset({1, 3})
"""CKS_RO_USER_FUNCTIONS and CKS_RW_USER_FUNCTIONS."""
UNLIMITED = frozenset({0, ctypes.c_ulong(-1).value})
"""CK_EFFECTIVELY_INFINITE and CK_UNAVAILABLE_INFORMATION."""

_Function = ctypes.CFUNCTYPE(ctypes.c_ulong)
_Initialize = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)
_AboutOne = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
_Login = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong)
_Version = ctypes.c_ubyte * 2


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS (PKCS#11 2.40, 3.7): four mutex callbacks, flags, reserved."""

    _fields_ = [
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    ]


class _Info(ctypes.Structure):
    """CK_INFO (3.1)."""

    _fields_ = [
        ("cryptoki_version", _Version),
        ("manufacturer", ctypes.c_char * 32),
        ("flags", ctypes.c_ulong),
        ("description", ctypes.c_char * 32),
        ("version", _Version),
    ]

    manufacturer: bytes
    description: bytes


class _TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO (3.2)."""

    _fields_ = [
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("max_sessions", ctypes.c_ulong),
        ("sessions", ctypes.c_ulong),
        ("max_rw_sessions", ctypes.c_ulong),
        ("rw_sessions", ctypes.c_ulong),
        ("max_pin", ctypes.c_ulong),
        ("min_pin", ctypes.c_ulong),
        ("memory", ctypes.c_ulong * 4),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_char * 16),
    ]

    max_sessions: int
    sessions: int


class _SessionInfo(ctypes.Structure):
    """CK_SESSION_INFO (3.3)."""

    _fields_ = [
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    ]

    state: int


class _FunctionList(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST (PKCS#11 2.40, 3.6)."""

    _fields_ = [
        ("version", _Version),
        ("initialize", _Initialize),
        ("finalize", _Initialize),
        ("get_info", _Initialize),
        ("get_function_list", _Function),
        ("get_slot_list", _Function),
        ("get_slot_info", _Function),
        ("get_token_info", _AboutOne),
        ("between", _Function * 8),  # C_GetMechanismList to C_CloseAllSessions
        ("get_session_info", _AboutOne),
        ("operation_state", _Function * 2),
        ("login", _Login),
    ]

    initialize: Callable[[object], int]
    finalize: Callable[[object], int]
    get_info: Callable[[object], int]
    get_token_info: Callable[[int, object], int]
    get_session_info: Callable[[int, object], int]
    login: Callable[[int, int, bytes, int], int]


class Cryptoki:
    """A loaded module. Raises OSError or AttributeError for a file that is none."""

    def __init__(self, path: str) -> None:
        functions = ctypes.POINTER(_FunctionList)()
        # The one function that a module must export.
        code = ctypes.CDLL(path).C_GetFunctionList(ctypes.byref(functions))
        if code != CKR_OK:
            raise OSError(f"C_GetFunctionList gave {code:#x}")
        self._functions = functions.contents
        self.locks = True

    def initialize(self) -> int:
        """For several threads, if the module can; `locks` says whether. Returns a CKR code; being initialised already
        is CKR_OK.
        """
        code = self._functions.initialize(ctypes.byref(_InitializeArguments(flags=CKF_OS_LOCKING_OK)))
        self.locks = code != CKR_CANT_LOCK
        if not self.locks:
            code = self._functions.initialize(None)
        return CKR_OK if code == CKR_CRYPTOKI_ALREADY_INITIALIZED else code

    def finalize(self) -> None:
        """What it returns changes nothing: there is nobody left to use the module."""
        self._functions.finalize(None)

    def library(self) -> str:
        """Manufacturer and description of the library; empty when it does not say."""
        info = _Info()
        if self._functions.get_info(ctypes.byref(info)) != CKR_OK:
            return ""
        return " ".join(text.decode("utf-8", "replace").strip() for text in (info.manufacturer, info.description))

    def sessions_left(self, slot: int) -> int | None:
        """How many sessions may still be opened with the slot's token; None for no known limit."""
        info = _TokenInfo()
        if self._functions.get_token_info(slot, ctypes.byref(info)) != CKR_OK or info.max_sessions in UNLIMITED:
            return None
        opened = 0 if info.sessions in UNLIMITED else info.sessions
        return max(0, info.max_sessions - opened)

    def logged_in(self, session: int) -> bool:
        """Whether the session is the user's. A session that cannot be asked is not."""
        info = _SessionInfo()
        return self._functions.get_session_info(session, ctypes.byref(info)) == CKR_OK and info.state in CKS_USER

    def login(self, session: int, pin: str) -> int:
        """C_Login as the user. Returns a CKR code."""
        encoded = pin.encode()
        return self._functions.login(session, CKU_USER, encoded, len(encoded))
