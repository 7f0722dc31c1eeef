"""Run a command as a process group of its own, and end the whole group when the starter goes away or asks for it.

A script for an interpreter without our packages: ``python -I _guard.py COMMAND...``. Its standard input is a pipe that
the starter keeps open; when the pipe closes, because the starter closed it or died, the group is ended. The exit status
is that of the command, or 128 and the number of the signal that ended it.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 3.0
"""Time that the group has after SIGTERM, before SIGKILL."""


def end_group(process: "subprocess.Popen[bytes]") -> None:
    for sign, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
        except (ProcessLookupError, PermissionError):
            return
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.02)


def main() -> None:
    try:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        os.write(1, f"cannot be started: {error}\n".encode(errors="replace"))
        sys.exit(126)

    def stop(*_: object) -> None:
        end_group(process)
        os._exit(143)

    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, stop)
    while process.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], 0.05)
        if ready and not os.read(0, 1):
            end_group(process)
            process.wait()
            break
    end_group(process)  # what it has left running
    sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


if __name__ == "__main__":
    main()
