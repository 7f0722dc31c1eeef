"""`demo`: a virtual rig scans a phantom while the whole pipeline runs, and the results are compared with the truth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.console import DONE, FAILED, JsonOption, err, errors_shown, out, styled
from opticstream.cli.run import load_what_feeds, run_parameters_of
from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import ConfigurationError, ProcessingError

if TYPE_CHECKING:  # brings Prefect, which reads its settings when it is imported
    from opticstream.flows.driver import Driver
    from opticstream.flows.session import Session

_MARK = "demo.json"


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo writes.")] = Path(
        "demo-output"
    ),
    resume: Annotated[bool, typer.Option(help="Continue a demo that was interrupted.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the phantom.")] = 1,
    slices: Annotated[int, typer.Option(help="Number of slices of the phantom.", min=1)] = 2,
    engine: Annotated[
        str, typer.Option(help="What computes tiles: native, cuda (a graphics card) or matlab (or Octave; axes too).")
    ] = "native",
    small: Annotated[bool, typer.Option(help="Use a smaller phantom: faster, with fewer pixels to compare.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try everything on this machine: scan a phantom, process it live, and compare the results with the truth.

    A virtual rig writes raw tiles while the pipeline runs on an embedded Prefect server. Nothing is left running and
    nothing outside the folder is changed. The exit status is 1 if the validation exceeds a limit or an item failed.
    After an interruption `--resume` continues where the demo stopped, with the same phantom.
    """
    from opticstream.sim.demo import PHANTOM_FILE, PROJECT_FILE, write_demo

    with errors_shown():
        folder = folder.absolute()
        _prepare(folder, resume=resume)
        project_file, phantom_file = folder / PROJECT_FILE, folder / PHANTOM_FILE
        if not (resume and project_file.exists() and phantom_file.exists()):
            if engine not in ("native", "cuda", "matlab"):
                raise ConfigurationError(f"--engine {engine}: expected native, cuda or matlab")
            write_demo(folder, seed=seed, slices=slices, small=small, engine=engine)
        config = load_project(project_file)
        code = _Demo(folder, project_file, phantom_file, quiet=as_json).run()
        report = _validate(project_file, folder, as_json=as_json)
        passed = code == DONE and report
        if not as_json:
            _print_pictures(config.base_path)
            out.print(styled("demo passed", "bold green") if passed else styled("demo failed", "bold red"))
    raise typer.Exit(DONE if passed else FAILED)


def _prepare(folder: Path, *, resume: bool) -> None:
    from opticstream.flows.server import is_in_use

    mark = folder / _MARK
    if is_in_use(folder / "prefect"):
        raise ConfigurationError(f"{folder}: a demo is already running there; stop it first, or choose another --out")
    if resume:
        if not mark.exists():
            raise ConfigurationError(f"--resume: there is no demo in {folder}; start one without --resume")
        return
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise ConfigurationError(f"{folder} is not empty and was not made by a demo; choose another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"made by": "opticstream demo", "may be removed": True}), encoding="utf-8")


class _Demo:
    def __init__(self, folder: Path, project_file: Path, phantom_file: Path, *, quiet: bool) -> None:
        self.folder = folder
        self.raw = folder / "raw"
        self._project_file = project_file
        self._phantom_file = phantom_file
        self._quiet = quiet
        self._rig: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the rig and the pipeline to the end and return 0, or 1 if something failed."""
        # The demo's tiles are small: wait only briefly, compile nothing for large ones, and use one thread per flow
        # run, because runs share the cores.
        for name, value in {
            "OPTICSTREAM_POLL_S": "0.5", "OPTICSTREAM_STABLE_S": "1", "OPTICSTREAM_SWEEP_S": "45",
            "OPTICSTREAM_LEASE_S": "30", "OPTICSTREAM_COLLAPSE_S": "20",
            "OPTICSTREAM_COMPILE_AHEAD": "false", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
        }.items():  # fmt: skip
            os.environ.setdefault(name, value)
        from opticstream.cli.following import Follower, follow
        from opticstream.flows.session import local_session

        settings = DeploymentSettings()
        with Follower(live=err.is_terminal, quiet=self._quiet) as follower:
            follower.say(f"the phantom and the project file are in {self.folder}")
            self._start_rig()
            try:
                with local_session(self.folder / "prefect", say=follower.say, meanwhile=load_what_feeds) as session:
                    from opticstream.flows.driver import Driver
                    from opticstream.pipeline.project import Project

                    chosen = run_parameters_of(str(self._project_file), [])
                    self.raw.mkdir(exist_ok=True)
                    opened = Project.open(chosen.config, deployment=settings, parameters=chosen.overrides)
                    driver = Driver.on_folder(opened, self.raw)
                    progress = follow(
                        driver, follower, is_over=lambda: self._is_over(driver), check=lambda: self._check(session)
                    )
            finally:
                self._stop_rig()
        return FAILED if progress.failures else DONE

    def _start_rig(self) -> None:
        command = [
            sys.executable, "-m", "opticstream", "sim", "rig", str(self._project_file), str(self.raw),
            "--phantom", str(self._phantom_file), "--truth", str(self.folder / "truth"),
        ]  # fmt: skip
        with (self.folder / "rig.log").open("ab") as log:
            from opticstream.flows.server import die_with_parent

            self._rig = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def _stop_rig(self) -> None:
        if self._rig is not None and self._rig.poll() is None:
            self._rig.terminate()
            self._rig.wait(timeout=20)

    def _is_over(self, driver: Driver) -> bool:
        assert self._rig is not None
        if self._rig.poll() is None or driver.incomplete():
            return False
        layout = driver.project.layout
        known = driver.watcher.known_batches()
        return all(batch in known for mosaic in {b.mosaic for b in known} for batch in layout.batches(mosaic))

    def _check(self, session: Session) -> bool:
        taken_over = session.check()
        assert self._rig is not None
        if self._rig.poll() not in (None, 0):
            tail = (self.folder / "rig.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise ProcessingError(f"the virtual rig ended with status {self._rig.returncode}:\n{tail}")
        return taken_over


def _validate(project_file: Path, folder: Path, *, as_json: bool) -> bool:
    from opticstream.cli.sim import show_validation

    return show_validation(project_file, folder / "truth", as_json=as_json)


def _print_pictures(base: Path) -> None:
    pictures = sorted(base.glob("mosaic-*/stitched/*.jpg")) + sorted(base.glob("registered/*.jpg"))
    pictures += sorted(base.glob("validation/*"))
    out.print("pictures:")
    for picture in pictures:
        out.print(f"  {os.path.relpath(picture)}")
