"""Word to systemd about the program's state (sd_notify(3)), over the datagram socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import asyncio
import os
import socket


def notify(state: str) -> bool:
    """Send a state such as `READY=1` or `STOPPING=1`; False when nobody listens.

    It never blocks and never fails: a supervisor that went away must not stop the program.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def serving(what: str) -> None:
    """The start is over; `systemctl status` shows what the program does from now on."""
    notify(f"READY=1\nSTATUS={what}")


def starting(what: str) -> None:
    """What the start waits for."""
    notify(f"STATUS={what}")


def stopping() -> None:
    notify("STOPPING=1\nSTATUS=Finishing the calls that are under way")


def watchdog_interval() -> float | None:
    """Seconds between two signs of life where systemd waits for them (WatchdogSec=): half of its patience."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdecimal() and int(text) > 0 else None


async def keep_watchdog_calm() -> None:
    """Give signs of life from the event loop, as long as it turns, until cancelled. Ends at once if none are wanted."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
