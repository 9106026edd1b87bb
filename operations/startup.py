"""The garbage collector while a process starts and when it ends, and in commands, which live too short for it.

Imports and a server's rooms are many objects that stay. Looking at them again and again, as they become more, takes
an eighth of a start's CPU and frees nothing.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()

_SELDOM = 200_000
"""New objects until the collector looks: a start makes about half of that. A command with a huge answer meets it."""


def begun() -> None:
    """The process begins: from here the collector runs only when there is very much to look at."""
    gc.set_threshold(_SELDOM)


def finished() -> None:
    """The process serves: what its start made stays unlooked at, what comes now is collected as usual."""
    gc.freeze()
    gc.set_threshold(*_USUAL)


def ended() -> None:
    """The process ends, all its work done: the kernel takes its memory back, so none needs to be collected first."""
    gc.freeze()
