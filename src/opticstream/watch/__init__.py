"""From files on a disk to "this batch is ready": discovery, stability, duplicates. Only reads."""

from opticstream.watch.watcher import FoundBatch, IncompleteBatch, RawFile, Watcher

__all__ = ["FoundBatch", "IncompleteBatch", "RawFile", "Watcher"]
