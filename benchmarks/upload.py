"""Uploads to S3 against the server's own client and boto3's transfer manager, in pairs, at one server in one command.

``python benchmarks/upload.py``: a real S3 server (`rclone serve s3`), and two kinds of results: one large file, and a
store of many small chunks. In each round each client uploads both to a place of its own, in an order that changes from
round to round; every client is a fresh process with the same number of transfers. Ours also compares every object with
the server's answer and records it in the ledger; the others do not. Printed are MB/s and objects per second, the median
of the ratios within rounds (above 1: ours is faster), the processor seconds, and the most memory that our process took
beyond what it takes without an upload. Python's imports are not part of that, because a flow run has them already;
`whole` are the seconds of the whole process, with them. The times of rclone contain its start, which is short.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opticstream.testing.s3_server import ACCESS_KEY, SECRET, SECRET_KEY, RcloneServer, _rclone

BUCKET = "bench"
CLIENTS = ("opticstream", "rclone copy", "boto3")


def make(folder: Path, *, file_mb: int, chunks: int, chunk_kb: int) -> dict[str, int]:
    """Write a file and a store with its manifest below a folder; return the bytes of each."""
    from opticstream.state.manifest import write_manifest

    folder.mkdir(parents=True)
    block = os.urandom(1 << 20)
    with (folder / "raw.nii.gz").open("wb") as file:
        for number in range(file_mb):
            file.write(number.to_bytes(8, "little") + block[8:])
    store = folder / "volume.ome.zarr"
    for number in range(chunks):
        chunk = store / "0" / "c" / str(number // 1000) / str(number % 1000)
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(number.to_bytes(8, "little") + block[8 : chunk_kb << 10])
    write_manifest(store)
    return {"raw.nii.gz": file_mb << 20, "volume.ome.zarr": chunks * (chunk_kb << 10)}


def ours(endpoint: str, folder: Path, name: str, prefix: str, threads: int) -> None:
    from opticstream.config.publish_targets import S3TargetSettings
    from opticstream.publish.ledger import Ledger
    from opticstream.publish.opening import open_remote_target
    from opticstream.publish.patience import Patience
    from opticstream.publish.transfer import Published, Transfer

    settings = S3TargetSettings(endpoint=endpoint, bucket=BUCKET, prefix=prefix, credentials="bench")
    target = open_remote_target(settings, lambda _name: SECRET, Patience(300.0))
    path = folder / name
    known = (folder / f"{name}.recorded").read_text() if path.is_file() else None
    with tempfile.TemporaryDirectory() as base:
        transfer = Transfer(target, Ledger(Path(base), "s3"), threads=threads)
        before = memory_mb()
        begin = started()
        transfer.send(Published(path, name, path.stat().st_size, known))
        tell(begin, memory_mb() - before)


def with_boto3(endpoint: str, folder: Path, name: str, prefix: str, threads: int) -> None:
    from boto3.s3.transfer import TransferConfig
    from boto3.session import Session
    from botocore.config import Config

    client = Session().client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(request_checksum_calculation="when_required", max_pool_connections=80),
    )  # fmt: skip
    path = folder / name
    before = memory_mb()
    begin = started()
    if path.is_file():
        client.upload_file(str(path), BUCKET, f"{prefix}/{name}", Config=TransferConfig(max_concurrency=threads))
    else:
        one = TransferConfig(use_threads=False)
        files = [file for file in path.rglob("*") if file.is_file()]

        def send(file: Path) -> None:
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            client.upload_file(str(file), BUCKET, key, Config=one)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(send, files))
    tell(begin, memory_mb() - before)


def with_rclone(endpoint: str, folder: Path, name: str, prefix: str, threads: int) -> None:
    path = folder / name
    goal = f"there:{BUCKET}/{prefix}" + ("" if path.is_file() else f"/{name}")
    environment = {
        "RCLONE_CONFIG_THERE_TYPE": "s3", "RCLONE_CONFIG_THERE_PROVIDER": "Rclone",
        "RCLONE_CONFIG_THERE_ENDPOINT": endpoint, "RCLONE_CONFIG_THERE_ACCESS_KEY_ID": ACCESS_KEY,
        "RCLONE_CONFIG_THERE_SECRET_ACCESS_KEY": SECRET_KEY, "RCLONE_CONFIG": os.devnull,
    }  # fmt: skip
    options = ["--transfers", str(threads), "--checkers", str(threads), "--s3-upload-concurrency", str(threads)]
    begin = started()
    subprocess.run(
        [_rclone(), "copy", str(path), goal, *options], check=True, env=os.environ | environment, capture_output=True
    )
    tell(begin, 0.0)


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def started() -> tuple[float, float]:
    """Return the time and the processor seconds of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(one.ru_utime + one.ru_stime for one in used)


def tell(begin: tuple[float, float], grown_mb: float) -> None:
    seconds, cpu = (now - before for now, before in zip(started(), begin, strict=True))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "grown_mb": grown_mb}))


def measured(client: str, endpoint: str, folder: Path, name: str, prefix: str, threads: int) -> dict[str, float]:
    """Return seconds, processor seconds and growth of one upload in a process of its own."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--one", client, endpoint, str(folder), name, prefix, str(threads)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["whole"] = time.monotonic() - begin
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file-mb", type=int, default=512, help="size of the large file")
    parser.add_argument("--chunks", type=int, default=10_000, help="chunks of the store")
    parser.add_argument("--chunk-kb", type=int, default=16, help="size of each chunk")
    parser.add_argument("--threads", type=int, default=5, help="transfers at the same time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        client, endpoint, folder, name, prefix, threads = options.one
        run = {"opticstream": ours, "rclone copy": with_rclone, "boto3": with_boto3}[client]
        run(endpoint, Path(folder), name, prefix, int(threads))
        return
    from opticstream.state.record import sha256_of_path

    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="upload-") as place:
        folder = Path(place, "archive")
        sizes = make(folder, file_mb=options.file_mb, chunks=options.chunks, chunk_kb=options.chunk_kb)
        (folder / "raw.nii.gz.recorded").write_text(sha256_of_path(folder / "raw.nii.gz"))  # as the archive's record
        with RcloneServer(Path(place, "served"), BUCKET) as server:
            for number in range(options.rounds):
                order = CLIENTS[number % len(CLIENTS) :] + CLIENTS[: number % len(CLIENTS)]
                for name in sizes:
                    for client in order:
                        prefix = f"{client.split()[0]}-{number}"
                        found = measured(client, server.endpoint, folder, name, prefix, options.threads)
                        results.setdefault(name, {}).setdefault(client, []).append(found)
                for path in Path(place, "served", BUCKET).iterdir():
                    subprocess.run(["rm", "-r", str(path)], check=True)
    if options.json:
        print(json.dumps({"sizes": sizes, "results": results, "load": os.getloadavg()}))
        return
    print(f"load average {os.getloadavg()[0]:.1f}; {options.rounds} rounds, {options.threads} transfers")
    for name, by_client in results.items():
        files = options.chunks if name.endswith(".zarr") else 1
        print(f"\n{name}: {sizes[name] / 1e6:.0f} MB in {files} objects")
        for client in CLIENTS:
            runs = by_client[client]
            seconds = statistics.median(one["seconds"] for one in runs)
            pairs = zip(by_client["opticstream"], runs, strict=True)
            ratio = statistics.median(other["seconds"] / own["seconds"] for own, other in pairs)
            cpu, whole = (statistics.median(one[name] for one in runs) for name in ("cpu", "whole"))
            grown = max(one["grown_mb"] for one in runs)
            print(
                f"  {client:12} {sizes[name] / seconds / 1e6:8.1f} MB/s {files / seconds:8.0f} objects/s"
                f"   ours {ratio:5.2f} times as fast   {cpu:6.2f} s of processor   {whole:6.2f} s whole"
                f"   {grown:5.0f} MB"
            )


if __name__ == "__main__":
    main()
