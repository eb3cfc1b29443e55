"""What a child must not be able to do: proof that its limits hold and its record is kept."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path


def naughty(what: str, canary: str) -> None:
    """Does in a child what the limits are there for."""
    if what == "hang":
        time.sleep(60)
    elif what == "memory":
        bytearray(2**36)
    elif what == "network":
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9))
    elif what == "shell":
        subprocess.run(f"touch {canary}", shell=True, check=True)
    elif what == "write":
        Path(canary).write_bytes(bytes(2**20))
