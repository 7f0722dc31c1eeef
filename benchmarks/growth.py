"""How much a server's database grows: for a batch of tiles, for 1,000 tiles, and for a day of sweeps without work.

``python benchmarks/growth.py``: a small phantom is acquired and run through the whole pipeline on an embedded server
(SQLite), then the worker sweeps every second for a while. Printed are the rows and bytes of each table (with indices)
before and after. What mosaics and the slice cost is spread over their few batches, so that the figures for batches and
for 1,000 tiles are too high rather than too low. A batch costs the same however large its tiles are; only pictures in
artifacts grow with the mosaic, so a picture of full size is measured apart. The last lines say what a year of
acquisition comes to, with and without retention.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS, ROWS, MOSAICS = 6, 4, 2
YEAR_TILES = 100 * 2 * 40 * 25 * 10
"""Ten samples of 100 slices, 2 mosaics, 40 batches, 25 tiles: a year of a busy microscope."""
TILES_OF_A_BATCH = 25


def acquire(folder: Path) -> Path:
    from opticstream.config import load_project
    from opticstream.io.atomic import write_text
    from opticstream.sim.demo import demo_phantom, project_text
    from opticstream.sim.rig import VirtualRig

    text = project_text(
        name="growth", slices=1, samples=256, b_lines=64, a_lines=64, a_lines_tilted=56, columns=COLUMNS, rows=ROWS
    )
    file = write_text(folder / "project.toml", text)
    VirtualRig(
        load_project(file), demo_phantom(slices=1), folder / "raw", folder / "truth", calibration_folder=folder
    ).run()
    return file


def sizes(home: Path) -> dict[str, tuple[int, int]]:
    """Return rows and bytes of each table with its indices; the server must have ended."""
    base = sqlite3.connect(home / "prefect.db")
    base.execute("pragma wal_checkpoint(truncate)")
    owner = dict(base.execute("select name, tbl_name from sqlite_master where type in ('table', 'index')"))
    found: dict[str, list[int]] = {}
    for name, used in base.execute("select name, sum(pgsize - unused) from dbstat group by name"):
        table = owner.get(name, name)
        found.setdefault(table, [0, 0])[1] += used
    for table, counts in found.items():
        if table in owner.values():
            counts[0] = base.execute(f'select count(*) from "{table}"').fetchone()[0]
    # What each tile brings, as a task of its flow run, apart from what each batch brings.
    mean = sum(found[table][1] for table in ("events", "event_resources")) / found["events"][0]
    tasks = base.execute("select count(*) from events where event like 'prefect.task-run.%'").fetchone()[0]
    found["(events of tasks)"] = [tasks, int(tasks * mean)]
    base.close()
    return {table: (rows, size) for table, (rows, size) in found.items()}


def show(title: str, before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], per: float, unit: str):
    print(f"\n{title} (per {unit})\n{'table':28} {'rows':>9} {'kB':>9}")
    total = 0.0
    for table in sorted(after, key=lambda name: before.get(name, (0, 0))[1] - after[name][1]):
        rows, size = (a - b for a, b in zip(after[table], before.get(table, (0, 0))))
        total += 0 if table.startswith("(") else size / per
        if size / per > 200 or rows / per >= 0.5:
            print(f"{table:28} {rows / per:9.1f} {size / per / 1e3:9.1f}")
    print(f"{'all':28} {'':9} {total / 1e3:9.1f}")
    return total


def picture_bytes() -> int:
    """Return the size of an artifact with a picture of full size: noise like that of an en-face mosaic."""
    import numpy as np
    from PIL import Image

    from opticstream.flows.picture_artifacts import LONGEST_PX, image_markdown

    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(LONGEST_PX, LONGEST_PX)), axis=0)
    grey = 128 + 40 * smooth / np.abs(smooth).max() + rng.normal(scale=12, size=smooth.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mosaic.png"
        Image.fromarray(grey.clip(0, 255).astype("u1")).save(path)
        return len(image_markdown(path, title="mosaic 1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=20, help="sweeps to wait for")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    os.environ["OPTICSTREAM_SWEEP_S"] = "1"
    from opticstream.flows.session import local_session

    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        home = folder / "home"
        file = acquire(folder)
        with local_session(home):
            pass
        empty = sizes(home)
        environment = os.environ | {"OPTICSTREAM_SWEEP_S": "60"}
        command = [sys.executable, "-m", "opticstream", "run", str(file), str(folder / "raw"), "--home", str(home)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        worked = sizes(home)
        with local_session(home, sweeps=True):
            from opticstream.flows.prefect_state import PrefectApi

            api, found = PrefectApi(), 0
            which = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "flows": {"name": {"any_": ["sweep"]}}}
            while found < given.sweeps:
                time.sleep(1)
                found = api.call("POST", "/flow_runs/count", which).json()
        idle = sizes(home)
    batches = COLUMNS * MOSAICS
    batch = show("Work: one slice of two mosaics", empty, worked, batches, f"batch of {ROWS} tiles")
    sweep = show("Sweeps without work", worked, idle, found, "sweep")

    def grown(*tables: str) -> float:
        return sum(worked[table][1] - empty[table][1] for table in tables) / batches

    events, artifacts = grown("events", "event_resources"), grown("artifact", "artifact_collection")
    events_of_tile = grown("(events of tasks)") / ROWS
    runs_of_tile = grown("task_run", "task_run_state") / ROWS
    events_of_batch = events - ROWS * events_of_tile
    runs_of_batch = batch - events - artifacts - ROWS * runs_of_tile
    per_thousand = 1000 / TILES_OF_A_BATCH
    events_mb = (1000 * events_of_tile + per_thousand * events_of_batch) / 1e6
    runs_mb = (1000 * runs_of_tile + per_thousand * runs_of_batch) / 1e6
    artifacts_mb = per_thousand * artifacts / 1e6
    sweep_events = sum(idle[table][1] - worked[table][1] for table in ("events", "event_resources")) / found
    figures = {
        "events, kB for each tile": events_of_tile / 1e3,
        "events, kB for each batch": events_of_batch / 1e3,
        "task runs, kB for each tile": runs_of_tile / 1e3,
        "flow runs, logs, states, kB for each batch": runs_of_batch / 1e3,
        "artifacts with small pictures, kB for each batch": artifacts / 1e3,
        f"1,000 tiles in batches of {TILES_OF_A_BATCH}: events, MB": events_mb,
        "1,000 tiles: task and flow runs, logs, MB": runs_mb,
        "1,000 tiles: artifacts with all versions, MB": artifacts_mb,
        "a day of sweeps, one a minute: events, MB": 1440 * sweep_events / 1e6,
        "a day of sweeps: runs, logs, MB": 1440 * (sweep - sweep_events) / 1e6,
        "an artifact with a picture of full size, MB": picture_bytes() / 1e6,
        f"a year of {YEAR_TILES / 1e6:g} million tiles, without retention, GB": (
            YEAR_TILES / 1e6 * (events_mb + runs_mb + artifacts_mb) + 365 * 1440 * sweep / 1e9
        ),
        "the same, with 7 days of events, 30 of runs and 1 of sweeps, GB": (
            YEAR_TILES / 1e6 * (7 * events_mb + 30 * (runs_mb + artifacts_mb)) / 365
            + 1440 * (7 * sweep_events + sweep - sweep_events) / 1e9
        ),
    }
    print()
    for what, value in figures.items():
        print(f"{what:70} {value:9.2f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
