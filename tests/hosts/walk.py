"""The walk of `docs/how-to/several-hosts.md`: its commands, read from the page, and the hosts that they are run on.

A block of commands has a comment above it, ``<!-- A: server, keeps running -->``: the host, the name of the step, and
whether it keeps running. Steps whose names begin with ``settings`` come before every other step of their host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.namespaces import Host, Service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "several-hosts.md"
ADDRESSES: Mapping[str, str] = {"A": "10.0.0.1", "B": "10.0.0.2", "C": "10.0.0.3"}
SHARE: Mapping[str, str] = {"A": "/srv/share", "B": "/mnt/share", "C": "/media/share"}
"""Where each host of the page sees the share."""

ACCOUNT = "lab:change-me-too"
"""What stands in `OPTICSTREAM_API_AUTH` on the page."""

HURRY: Mapping[str, str] = {
    "OPTICSTREAM_POLL_S": "0.5",
    "OPTICSTREAM_STABLE_S": "1",
    "OPTICSTREAM_SWEEP_S": "15",
    "OPTICSTREAM_COLLAPSE_S": "2",
    "OPTICSTREAM_RETRY_DELAY_S": "0.2",
    "OPTICSTREAM_CRASHES": "100",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
"""Settings that the test puts before those of the page: the same waits, only shorter."""

_BLOCK = re.compile(
    r"^<!-- (?P<host>[A-Z]|each host): (?P<step>[^,\n]+?)(?P<keeps>, keeps running)? -->\n"
    r"```sh\n(?P<script>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of commands of the page."""

    host: str
    step: str
    keeps_running: bool
    script: str


def blocks_of_page() -> list[Block]:
    """Return the marked blocks of the page, in their order."""
    return [
        Block(found["host"], found["step"], bool(found["keeps"]), found["script"])
        for found in _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    ]


@dataclass
class Walk:
    """Runs the steps of the page on hosts.

    Parameters
    ----------
    hosts : mapping
        Letter of the page -> host.
    settings : sequence of str
        Names of the steps with settings that are followed.
    programs : Path
        Folder of the installed `opticstream`, in place of the one of the page.
    substitutions : mapping
        Text of the page -> what stands there in the test.
    """

    hosts: Mapping[str, Host]
    programs: Path
    settings: Sequence[str] = ("settings",)
    substitutions: Mapping[str, str] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)

    def run(self, letter: str, step: str, *, timeout_s: float = 900.0) -> str:
        """Run a step that ends, and return what it has printed."""
        block = self._block(letter, step)
        assert not block.keeps_running, f"{letter}: {step} keeps running"
        return self.hosts[letter].run(self._script(block), timeout_s=timeout_s).stdout

    def start(self, letter: str, step: str) -> Service:
        """Start a step that keeps running."""
        block = self._block(letter, step)
        assert block.keeps_running, f"{letter}: {step} ends"
        return self.hosts[letter].start(step.replace(" ", "-"), self._script(block))

    def _block(self, letter: str, step: str) -> Block:
        (block,) = (b for b in blocks_of_page() if (b.host, b.step) == (letter, step))
        self.done.append((letter, step))
        return block

    def _script(self, block: Block) -> str:
        settings = [b.script for b in blocks_of_page() if b.host == block.host and b.step in self.settings]
        hurry = "".join(f"export {name}={value}\n" for name, value in HURRY.items())
        script = "".join([hurry, *settings, block.script])
        for text, other in {"/opt/opticstream/bin": str(self.programs), **self.substitutions}.items():
            script = script.replace(text, other)
        return script


_ALWAYS = {("A", "server"), ("A", "deploy"), ("A", "project"), ("B", "worker"), ("A", "look"), ("A", "result")}
TWO_HOSTS = _ALWAYS | {("A", "worker"), ("A", "watch"), ("A", "microscope")}
"""Steps of the page that two hosts need."""
THREE_HOSTS = _ALWAYS | {("A", "database"), ("C", "worker"), ("C", "watch"), ("C", "microscope")}
"""Steps of the page that three hosts need."""
