"""Notifications: what is sent (`Milestone`), where to (`Target`), and what was sent (`Notifier`).

A target is a module with the name of its kind in the settings; see `docs/how-to/add-a-target.md`.
"""

from opticstream.notify.milestone import Level, Link, Milestone
from opticstream.notify.notifier import Notifier, NotTold
from opticstream.notify.opening import open_targets
from opticstream.notify.target import Target, TargetContext

__all__ = ["Level", "Link", "Milestone", "NotTold", "Notifier", "Target", "TargetContext", "open_targets"]
