"""`notify test`: send a test message to the targets of notifications."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from opticstream.cli.console import JsonOption, end_with_outcomes, err, errors_shown, out
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError

app = typer.Typer(help="Check the targets of notifications (OPTICSTREAM_NOTIFY_TARGETS).", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `test` a command of its own."""


@app.command("test")
def send_test(
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="Name of a target; default: all.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture to send with it; default: a small one.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a test message with a picture to each target of this host, at once, also during quiet hours.

    The exit status is 1 if a target did not take it. Needs neither a project nor a server; a relative path of a target
    of kind `file` starts here.
    """
    from opticstream.notify import Milestone, TargetContext, open_targets
    from opticstream.system.host import HostIdentity

    with errors_shown(), tempfile.TemporaryDirectory(prefix="opticstream-") as folder:
        settings = DeploymentSettings().notify_targets
        if unknown := sorted(set(targets or ()) - {one.target_name for one in settings}):
            names = ", ".join(one.target_name for one in settings) or "none"
            raise ConfigurationError(f"--target {unknown[0]}: no such target; expected one of {names}")
        if picture is not None and not picture.is_file():
            raise ConfigurationError(f"--picture {picture}: no such file")
        host = HostIdentity.current().host
        milestone = Milestone(
            key=f"test-{Path(folder).name}",
            project="test",
            item=None,
            fact="test",
            title=f"test message from {host}",
            text=f"OpticStream on {host} can send messages here",
            pictures=(picture or _picture(Path(folder)),),
        )
        context = TargetContext(Path.cwd(), (err if as_json else out).print)
        found: dict[str, str] = {}
        for target in open_targets([one for one in settings if not targets or one.target_name in targets], context):
            try:
                target.tell(milestone)
                found[target.name] = ""
            except Exception as error:  # a target may raise anything; the others are tried all the same
                found[target.name] = " ".join(f"{type(error).__name__}: {error}".split())
    end_with_outcomes(
        found, good="sent", bad="failed", nothing="no target is set (OPTICSTREAM_NOTIFY_TARGETS)", as_json=as_json
    )


def _picture(folder: Path) -> Path:
    """Return a small picture: the colours of orientation, once round."""
    import numpy as np

    from opticstream.io.orientation_pictures import hue_colours
    from opticstream.io.pictures import write_jpeg

    angles = np.tile(np.linspace(-90, 90, 320, dtype=np.float32), (80, 1))
    colours = hue_colours(angles, brightness=np.ones_like(angles))
    return write_jpeg(folder / "test.jpg", np.rint(255 * colours).astype(np.uint8))
