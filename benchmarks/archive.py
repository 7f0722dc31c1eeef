"""How small and how fast the archive forms are, and other codecs for the same spectra, on one thread in one run.

    python benchmarks/archive.py [--spectra counts.npy] [--b-lines 40] [--repeats 3]

Inputs: a tile of the phantom by the virtual rig (made here: 2048 samples x 350 A-lines x 2 channels), and any of your
own: `.npy` of shape (B-lines[, channels], A-lines, samples), or NIfTI as written by a rig.

For every codec: how many times smaller than the raw bytes, and raw megabytes for each second of processor time, to
write and to read, best of the repeats. The forms of OpticStream are measured as they are used: with the SHA-256 of the
raw and of the packed bytes, and for `zarr` with every B-line decoded again and compared. The others are the bare
codecs, for each B-line of each channel.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib

from opticstream.compute.spectral_residual import residual_from_counts
from opticstream.config import config_from_mapping
from opticstream.io.packed import packed_reader
from opticstream.io.raw import SpectralShape
from opticstream.model.ids import TileId
from opticstream.sim.demo import project_text
from opticstream.sim.presets import full_size_phantom
from opticstream.sim.tiles import TileSimulator
from opticstream.stages.tile import GzipWriter, SpectraContent, SpectraZarrWriter
from opticstream.testing.raw_tiles import nifti_header


def seconds(action: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least processor time of an action, and its last result."""
    least, result = float("inf"), None
    for _ in range(repeats):
        begin = time.process_time()
        result = action()
        least = min(least, time.process_time() - begin)
    return least, result


def codecs() -> dict[str, tuple[Callable[[Any], bytes], Callable[[bytes, Any], Any]]]:
    """Encoders and decoders of one B-line of one channel."""

    def blosc(name: str, level: int, shuffle: int) -> Callable[[Any], bytes]:
        return lambda p: imagecodecs.blosc_encode(
            p, level=level, compressor=name, shuffle=shuffle, typesize=2, numthreads=1
        )

    def unblosc(data: bytes, like: Any) -> Any:
        return imagecodecs.blosc_decode(data, numthreads=1)

    def deviation(p: Any) -> Any:
        return (p - np.rint(p.mean(axis=0, dtype=np.float32)).astype(np.uint16)).view(np.int16)

    def jxl(effort: int) -> Callable[[Any], bytes]:
        return lambda p: imagecodecs.jpegxl_encode(p, effort=effort, lossless=True, numthreads=1, usecontainer=False)

    def like(decode: Callable[..., Any]) -> Callable[[bytes, Any], Any]:
        return lambda data, of: decode(data, shape=of.shape, dtype=of.dtype)

    return {
        "igzip (bare)": (lambda p: isal_zlib.compress(p, 2), lambda data, _: isal_zlib.decompress(data)),
        "blosc bitshuffle zstd-1": (blosc("zstd", 1, 2), unblosc),
        "JPEG XL lossless, effort 1": (jxl(1), lambda data, _: imagecodecs.jpegxl_decode(data, numthreads=1)),
        "JPEG-LS": (imagecodecs.jpegls_encode, lambda data, _: imagecodecs.jpegls_decode(data)),
        "pcodec level 3": (lambda p: imagecodecs.pcodec_encode(p, level=3), like(imagecodecs.pcodec_decode)),
        "Rice of deviations from the mean": (
            lambda p: imagecodecs.rcomp_encode(deviation(p)),
            lambda data, of: imagecodecs.rcomp_decode(data, shape=of.shape, dtype=np.int16),
        ),
        "residual, bitshuffle lz4-9": (lambda p: blosc("lz4", 9, 2)(residual_from_counts(p)[2]), unblosc),
        "residual, bitshuffle zstd-1": (lambda p: blosc("zstd", 1, 2)(residual_from_counts(p)[2]), unblosc),
        "residual, byte shuffle zstd-1": (lambda p: blosc("zstd", 1, 1)(residual_from_counts(p)[2]), unblosc),
    }


def archived(counts: Any, form: str) -> bytes:
    """Return the copy that OpticStream writes of counts (B-lines, channels, A-lines, samples)."""
    b_lines, channels, a_lines, samples = counts.shape
    file = io.BytesIO()
    if form == "zarr":
        shape = SpectralShape(samples, a_lines, channels, b_lines)
        writer: Any = SpectraZarrWriter(file, SpectraContent(shape, "nifti"))
    else:
        writer = GzipWriter(file)
    writer.tap(memoryview(nifti_header(counts.shape[::-1])))
    for b_line in counts:
        writer.tap(memoryview(np.ascontiguousarray(b_line)).cast("B"))
    writer.finish()
    return file.getvalue()


def read_back(path: Path) -> int:
    size = 0
    with packed_reader(path) as file:
        while data := file.read(1 << 22):
            size += len(data)
    return size


def measure(counts: Any, repeats: int) -> list[dict[str, Any]]:
    rows = []

    def row(name: str, size: int, writing: float, reading: float) -> None:
        speed = {"write": counts.nbytes / writing / 1e6, "read": counts.nbytes / reading / 1e6}
        rows.append({"codec": name, "times_smaller": counts.nbytes / size, **speed})

    with tempfile.TemporaryDirectory() as folder:
        for form, suffix in (("nii.gz", ".nii.gz"), ("zarr", ".nii.zarr.zip")):
            writing, data = seconds(lambda form=form: archived(counts, form), repeats)
            path = Path(folder, f"tile{suffix}")
            path.write_bytes(data)
            reading, _ = seconds(lambda path=path: read_back(path), repeats)
            row(f'**format = "{form}"**', len(data), writing, reading)
    planes = [np.ascontiguousarray(plane) for b_line in counts for plane in b_line]
    for name, (encode, decode) in codecs().items():
        writing, packed = seconds(lambda encode=encode: [encode(plane) for plane in planes], repeats)
        reading, _ = seconds(
            lambda decode=decode, packed=packed: [decode(d, p) for d, p in zip(packed, planes)], repeats
        )
        row(name, sum(map(len, packed)), writing, reading)
    return rows


def phantom_counts(samples: int, a_lines: int, b_lines: int) -> Any:
    """Return the spectra of a tile of tissue, as the camera of the virtual rig counts them."""
    text = project_text(
        name="archive", slices=1, samples=samples, b_lines=b_lines, a_lines=a_lines, a_lines_tilted=a_lines,
        columns=2, rows=2, threshold_db=60.0,
    )  # fmt: skip
    config = config_from_mapping(tomllib.loads(text), folder=Path("/nowhere"))
    return TileSimulator(config, full_size_phantom(slices=1)).tile(TileId(1, 3))


def own_counts(path: Path, b_lines: int) -> Any:
    if path.suffix == ".npy":
        counts = np.load(path, mmap_mode="r")
    else:
        import nibabel as nib

        counts = np.asarray(nib.load(path).dataobj).T
    counts = counts[:, None] if counts.ndim == 3 else counts
    middle = max(0, (len(counts) - b_lines) // 2)
    return np.ascontiguousarray(counts[middle : middle + b_lines], np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", type=Path, action="append", default=[], help=".npy or NIfTI of your own")
    parser.add_argument("--no-phantom", action="store_true")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--a-lines", type=int, default=350)
    parser.add_argument("--b-lines", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    inputs = {path.name: own_counts(path, options.b_lines) for path in options.spectra}
    if not options.no_phantom:
        inputs["phantom"] = phantom_counts(options.samples, options.a_lines, options.b_lines)
    results = {}
    for name, counts in inputs.items():
        results[name] = measure(counts, options.repeats)
        print(f"\n{name}: {' x '.join(map(str, counts.shape))} {counts.dtype}\n")
        print("| codec | times smaller | write MB/s | read MB/s |\n|---|---|---|---|")
        for row in results[name]:
            print(
                f"| {row['codec']} | {row['times_smaller']:.2f} | {row['write']:.0f} | {row['read']:.0f} |", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
