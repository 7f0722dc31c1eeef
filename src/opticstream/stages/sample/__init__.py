"""The sample: add one slice after the other to its stacks."""

from __future__ import annotations

from opticstream.stages.sample._update_sample import (
    SampleInput,
    UpdatedSample,
    leave_out_unfinished,
    stacks_at_rest,
    stacks_by_slice,
    unfinished_slices,
    update_sample,
)

__all__ = [
    "SampleInput",
    "UpdatedSample",
    "leave_out_unfinished",
    "stacks_at_rest",
    "stacks_by_slice",
    "unfinished_slices",
    "update_sample",
]
