"""What has happened to the items of a project: flag files with claims and a journal, and the shared project state.

The flag files (`facts`, `claims`, `journal`) are the truth. The project state (`store`, `oct_state`, `lsm_state`) is a
copy of it for hosts and people without access to the file system, and can be rebuilt from the flags at any time.
"""

from opticstream.state.claims import Claim, Holder
from opticstream.state.facts import Facts, FactsSnapshot, FactsView
from opticstream.state.record import FactRecord, FileRecord, RecordedHashes

__all__ = ["Claim", "FactRecord", "Facts", "FactsSnapshot", "FactsView", "FileRecord", "Holder", "RecordedHashes"]
