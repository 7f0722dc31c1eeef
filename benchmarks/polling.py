"""Time of one check of a folder of raw files that the watcher knows, and of the flags of a large project.

    python benchmarks/polling.py [--files 20000] [--mosaics 200] [--batches 40] [--folder DIR]

Processor and wall seconds, the best of five. The folder is on a disk of this machine unless `--folder` names
another; on a network share the wall time is what counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from opticstream.config import config_from_mapping
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
from opticstream.state.flags import flag_path
from opticstream.watch import Watcher


def best_of_five(look: Callable[[], object]) -> str:
    times = []
    for _ in range(5):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        look()
        times.append((time.process_time() - begin_cpu, time.perf_counter() - begin))
    processor, wall = min(times)
    return f"processor {processor:.3f} s, wall {wall:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one look at raw files and at flags.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--mosaics", type=int, default=200)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made for the time of the run")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        raw, project = Path(name, "raw"), Path(name, "project")
        raw.mkdir()
        scan = config_from_mapping(
            {
                "project": {"project_name": "p", "project_base_path": str(project)},
                "scan": {
                    "grid_size_y": 200,
                    "file_name": "mosaic_{mosaic:03d}_image_{tile:04d}_{n}.nii",
                    "illuminations": [{"name": "normal", "columns": -(-options.files // 200), "a_lines": 350}],
                },
            }
        ).scan
        for tile in range(1, options.files + 1):
            (raw / f"mosaic_001_image_{tile:04d}_0.nii").touch()
        watcher = Watcher(raw, scan, stable_s=1e9)
        watcher.poll()
        print(f"{options.files} raw files, looked at again      {best_of_five(watcher.poll)}")
        for mosaic in range(1, options.mosaics + 1):
            for batch in range(1, options.batches + 1):
                for fact in ("started", "processed"):
                    path = project / flag_path(BatchId(mosaic, batch), fact)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
        flags = 2 * options.mosaics * options.batches
        print(f"{flags} flags, counted                  {best_of_five(Facts(project).snapshot)}")


if __name__ == "__main__":
    main()
