"""What a triggered flow run costs the server before it does anything: Prefect's look-up of its own application.

``python benchmarks/triggers.py``: processor seconds of one look-up, as Prefect does it (the baseline) and as the
embedded server does it (`opticstream.flows.server_process`), in the same process, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time


def processor_seconds(repeats: int) -> float:
    """Return the median processor time of a look-up, in seconds."""
    from prefect.server.api.server import create_app

    create_app()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        create_app()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="look-ups of each kind (default 15)")
    repeats = parser.parse_args().repeats
    from opticstream.flows.server_process import remember_rendered_settings

    plain = processor_seconds(repeats)
    remember_rendered_settings()
    remembered = processor_seconds(repeats)
    print(f"Prefect alone      {1e3 * plain:8.1f} ms")
    print(f"embedded server    {1e3 * remembered:8.1f} ms, {plain / remembered:.1f} times less")


if __name__ == "__main__":
    main()
