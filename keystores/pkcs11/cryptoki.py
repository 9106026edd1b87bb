"""C_Initialize and C_Finalize by ctypes: python-pkcs11 offers no C_Initialize with arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

CKF_OS_LOCKING_OK = 2
CKR_OK = 0
CKR_CANT_LOCK = 0x0A
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

_TakesArguments = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


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


class _FunctionList(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST (PKCS#11 2.40, 3.6): the version, C_Initialize, C_Finalize."""

    _fields_ = [("version", ctypes.c_ubyte * 2), ("initialize", _TakesArguments), ("finalize", _TakesArguments)]

    initialize: Callable[[object], int]
    finalize: Callable[[object], int]


class Cryptoki:
    """A loaded module. Raises OSError or AttributeError for a file that is none."""

    def __init__(self, path: str) -> None:
        functions = ctypes.POINTER(_FunctionList)()
        # The one function that a module must export.
        code = ctypes.CDLL(path).C_GetFunctionList(ctypes.byref(functions))
        if code != CKR_OK:
            raise OSError(f"C_GetFunctionList gave {code:#x}")
        self._functions = functions.contents

    def initialize(self) -> int:
        """For several threads, if the module can. Returns a CKR code; being initialised already is CKR_OK."""
        code = self._functions.initialize(ctypes.byref(_InitializeArguments(flags=CKF_OS_LOCKING_OK)))
        if code == CKR_CANT_LOCK:
            code = self._functions.initialize(None)
        return CKR_OK if code == CKR_CRYPTOKI_ALREADY_INITIALIZED else code

    def finalize(self) -> None:
        """What it returns changes nothing: there is nobody left to use the module."""
        self._functions.finalize(None)
