"""Stands in for an interpreter: asks the warm process for a child and lives as long as it. Standard library only."""

import json
import os
import signal
import socket
import sys


def main() -> int:
    python = os.environ.get("OPTICSTREAM_WARM_PYTHON", sys.executable)
    arguments = sys.argv[1:]
    order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    message = json.dumps(order).encode() + b"\n"
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["OPTICSTREAM_WARM_SOCKET"])
        sent = socket.send_fds(connection, [message], [0, 1, 2])
        connection.sendall(message[sent:])
        answers = connection.makefile("r")
        first = answers.readline()
    except (OSError, KeyError):  # it is not there, or has ended before it had loaded
        first = ""
    if not first:
        os.execv(python, [python, *arguments])
    child = json.loads(first)["pid"]

    def forward(number: int, _frame: object) -> None:
        try:
            os.kill(child, number)
        except OSError:
            pass

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    last = answers.readline()
    if not last:
        return 1
    code = json.loads(last)["code"]
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
