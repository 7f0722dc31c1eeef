"""The sample: add one slice after the other to its stacks."""

from __future__ import annotations

from opticstream.stages.sample._by_hand import edge_of_moved_slice
from opticstream.stages.sample._ledger import slice_states, stacks_at_rest, stacks_by_slice, unfinished_slices
from opticstream.stages.sample._other_space import OtherSpace, other_spaces
from opticstream.stages.sample._pose_book import PoseBook, edge_from_facts, facts_of_edge
from opticstream.stages.sample._sample_input import SampleInput, UpdatedSample
from opticstream.stages.sample._update_sample import (
    leave_out_unfinished,
    register_sample,
    report_sample,
    update_sample,
)

__all__ = [
    "OtherSpace",
    "PoseBook",
    "SampleInput",
    "UpdatedSample",
    "edge_from_facts",
    "edge_of_moved_slice",
    "facts_of_edge",
    "leave_out_unfinished",
    "other_spaces",
    "register_sample",
    "report_sample",
    "slice_states",
    "stacks_at_rest",
    "stacks_by_slice",
    "unfinished_slices",
    "update_sample",
]
