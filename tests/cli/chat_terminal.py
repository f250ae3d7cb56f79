"""A program in a pseudo-terminal, for tests of what a person sees. Not a test itself."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

# The program makes the pseudo-terminal its own, so that Ctrl-C reaches it, and then runs as always.
BEGIN = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
# Every token takes a while, so that there is an answer to interrupt.
SLOW = """
import time
from quintet.generation import GenerationMixin
quick = GenerationMixin.generate_iter
def slow(*args, **kwargs):
    columns = quick(*args, **kwargs)
    try:
        for column in columns:
            time.sleep(0.05)
            yield column
    finally:
        columns.close()
GenerationMixin.generate_iter = slow
"""
MAIN = "import sys; from quintet.cli.main import main; sys.exit(main(sys.argv[1:]))\n"
PATIENCE = 240.0


class Terminal:
    """Runs `quintet` with `arguments`; `expect` waits for text, `send` types."""

    def __init__(self, *arguments: str, slow: bool = False, columns: int = 80, **environment: str) -> None:
        self._end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        program = BEGIN + (SLOW if slow else "") + MAIN
        given = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "OMP_NUM_THREADS": "1", **environment}
        given.pop("COLUMNS")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            env=given,
        )
        os.close(inner)
        self.seen = ""  # all that was printed
        self._place = 0  # up to where it was expected

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._end)

    def send(self, text: str) -> None:
        """Type `text`."""
        os.write(self._end, text.encode())

    def interrupt(self, pattern: str) -> str:
        """Press Ctrl-C at a prompt, and wait for `pattern`."""
        # Python's readline does not notice a Ctrl-C in the microseconds between two keys, but at the next line end.
        time.sleep(0.2)
        self.send("\x03")
        try:
            return self.expect(pattern, 20.0)
        except TimeoutError:
            self.send("\n")
            return self.expect(pattern)

    def expect(self, pattern: str, patience: float = PATIENCE) -> str:
        """Wait for `pattern` behind what was expected before; return what came up to its end."""
        limit = time.monotonic() + patience
        while (found := re.compile(pattern).search(self.seen, self._place)) is None:
            ready, _, _ = select.select([self._end], [], [], 0.2)
            data = self._read() if ready else None
            if data == b"" or time.monotonic() > limit:
                raise TimeoutError(f"no {pattern!r} in {self.seen[self._place :]!r}")
            if data:
                self.seen += data.decode("utf-8", "replace")
        text = self.seen[self._place : found.end()]
        self._place = found.end()
        return text

    def _read(self) -> bytes:
        try:
            return os.read(self._end, 65536)
        except OSError:  # the other end was closed
            return b""

    def leave(self) -> int:
        """Wait for the program to end; return its exit code."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            ready, _, _ = select.select([self._end], [], [], 0.2)
            data = self._read() if ready else b""
            self.seen += data.decode("utf-8", "replace")
            if not data and self.process.poll() is not None:
                return self.process.returncode
        raise AssertionError("the program did not end")
