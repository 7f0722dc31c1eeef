"""Warm starts: flow runs are forked from a process that has everything imported.

A fresh interpreter spends two to three seconds of processor time on importing Prefect and the numerics, for every
flow run. Here one process (`python -m opticstream.flows.warm`) imports once and waits; a worker of our type
(`worker_type.py`) starts a small launcher (`warm_launcher.py`) where a process worker would start an interpreter; the
launcher hands over its environment, arguments and output, a child is forked that does exactly what the interpreter
would have done, and the launcher ends as the child ends. Where the warm process cannot be reached, the launcher starts
an interpreter as usual.

The compiled kernels of large tiles are made ready in the same way: a child at low priority compiles what numba has not
cached, and the warm process then loads it. A tile that comes before that waits for its own compilation.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.flows.server import die_with_parent
from opticstream.system.lacking import log_once_for_host
from opticstream.system.places import can_run_programs

LAUNCHER_VARIABLE = "OPTICSTREAM_WARM_LAUNCHER"
"""Set in the process of a worker that has a warm process: the program that stands in for an interpreter."""
SOCKET_VARIABLE = "OPTICSTREAM_WARM_SOCKET"
PYTHON_VARIABLE = "OPTICSTREAM_WARM_PYTHON"
LAUNCHER = Path(__file__).with_name("warm_launcher.py")
_LONGEST_SOCKET_PATH = 100
_WAITING = 64
"""Launchers that may wait while the warm process loads, or forks for others."""
# What flow runs load; libraries that start threads when they are imported are left to the child.
_PRELOADED = (
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "opticstream.flows.oct",
    "opticstream.flows.picture",
    "opticstream.notify.log",
    "opticstream.pipeline.batches",
    "opticstream.pipeline.fan_in",
    "opticstream.pipeline.milestones",
    "opticstream.pipeline.mosaics",
    "opticstream.pipeline.slices",
    "opticstream.pipeline.uploads",
    "opticstream.stages.project",
    "nibabel",
)


@contextmanager
def warm_starts(folder: Path, /) -> Iterator[None]:
    """Let the workers of this process start flow runs from a warm process.

    Parameters
    ----------
    folder : Path
        For the socket and the launcher.
    """
    if sys.platform != "linux":  # elsewhere forking a process with loaded libraries is not safe
        yield
        return
    address = folder / f"warm-{os.getpid()}.sock"
    if not can_run_programs(folder) or len(os.fsencode(address)) > _LONGEST_SOCKET_PATH:
        log_once_for_host(f"flow runs start slowly: no program may run in {folder}, or its path is too long (TMPDIR)")
        yield
        return
    # Only the warm process keeps the socket: launchers wait there while it loads, and are refused once it has ended.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(_WAITING)
        process = subprocess.Popen(
            [sys.executable, "-m", "opticstream.flows.warm", str(listener.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            preexec_fn=die_with_parent,
        )
    launcher = folder / f"warm-{os.getpid()}.py"
    # -I and -S: the launcher needs nothing but the standard library, and should cost next to nothing.
    launcher.write_text(f"#!{sys.executable} -IS\n{LAUNCHER.read_text(encoding='utf-8')}", encoding="utf-8")
    launcher.chmod(stat.S_IRWXU)
    told = {LAUNCHER_VARIABLE: str(launcher), SOCKET_VARIABLE: str(address), PYTHON_VARIABLE: sys.executable}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]
        process.terminate()
        process.wait()
        for path in (address, launcher):
            path.unlink(missing_ok=True)


def serve(listener: socket.socket, /) -> None:
    """Import everything once, then fork a child for every launcher that comes, until ended by a signal."""
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    _complete_models()
    _run_an_event_loop()
    # What is loaded by now stays: collections of garbage in the children neither visit nor copy it.
    gc.collect()
    gc.freeze()
    children: dict[int, socket.socket] = {}
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        compiler = _fork_compiler() if DeploymentSettings().compile_ahead else None
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    pid = _fork(connection, listener)
                    if pid:
                        children[pid] = connection
                        selector.register(connection, selectors.EVENT_READ, pid)
                elif key.fileobj == wake_read:
                    os.read(wake_read, 4096)
                elif not _launcher_lives(key.fileobj):
                    os.kill(key.data, signal.SIGKILL)
                    selector.unregister(key.fileobj)
            for pid, code in _ended():
                if pid == compiler:
                    if code == 0:
                        _warm_kernels()  # from the cache
                    continue
                connection = children.pop(pid)
                with _quietly():
                    selector.unregister(connection)
                with _quietly():
                    connection.sendall(json.dumps({"code": code}).encode() + b"\n")
                connection.close()


def _complete_models() -> None:
    """Build the validators of Prefect's models, which are otherwise built when they are first used: in every child."""
    from pydantic import BaseModel

    models: list[type[BaseModel]] = [BaseModel]
    while models:
        found = models.pop()
        models += found.__subclasses__()
        if found.__module__.startswith("prefect.") and not found.__pydantic_complete__:
            found.model_rebuild(raise_errors=False)


def _run_an_event_loop() -> None:
    """Load what the clients of a server load when they are first used; it starts no thread."""
    import anyio
    import anyio.streams.tls

    anyio.run(anyio.sleep, 0)
    "localhost".encode("idna")


def _warm_kernels() -> None:
    from opticstream.compute.tile_engine import warm_kernels  # imports the compiler

    warm_kernels()


def _fork_compiler() -> int:
    """Fork a child that compiles the kernels of large tiles into numba's cache, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        os.nice(10)
        _warm_kernels()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _fork(connection: socket.socket, listener: socket.socket) -> int:
    """Fork the child that a launcher asks for and return its id; 0 where the launcher said nothing sensible."""
    try:
        connection.settimeout(10)
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        while not message.endswith(b"\n"):
            piece = connection.recv(1 << 20)
            if not piece:
                raise ValueError("the launcher went away")
            message += piece
        order = json.loads(message)
        connection.settimeout(None)
    except (OSError, ValueError):
        connection.close()
        return 0
    pid = os.fork()
    if pid == 0:
        _become(order, files, connection, listener)
    for file in files:
        os.close(file)
    connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    return pid


def _become(order: dict[str, object], files: list[int], connection: socket.socket, listener: socket.socket) -> None:
    """Be the interpreter that the launcher stands for; does not return."""
    code: object = 1
    try:
        die_with_parent()  # which ends with the worker: no flow run outlives its worker
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        listener.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.environ.clear()
        os.environ.update({str(k): str(v) for k, v in dict(order["environment"]).items()})  # type: ignore[call-overload]
        os.chdir(str(order["folder"]))
        sys.path[0:0] = [str(order["folder"])]  # as `python -m` does
        arguments = [str(argument) for argument in order["arguments"]]  # type: ignore[attr-defined]
        module = arguments[arguments.index("-m") + 1]
        sys.argv = [module, *arguments[arguments.index("-m") + 2 :]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        status = code if isinstance(code, int) else 0 if code is None else 1
        with _quietly():
            # Events and logs that Prefect still holds are sent by its own exit handlers.
            import atexit

            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


def _launcher_lives(connection: object) -> bool:
    assert isinstance(connection, socket.socket)
    try:
        return bool(connection.recv(1))
    except OSError:
        return False


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


@contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError):
        pass


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
