"""Notifications: what is sent (`Milestone`), where to (`Target`), and what was sent (`Notifier`).

A target is a module with the name of its kind in the settings; see `docs/how-to/add-a-target.md`.
"""

from opticstream.config.notify_targets import Level
from opticstream.notify.delivery import Delivery
from opticstream.notify.milestone import Link, Milestone
from opticstream.notify.notifier import Notifier, NotTold
from opticstream.notify.opening import open_targets
from opticstream.notify.target import RetryLater, Target, TargetContext

__all__ = [
    "Delivery",
    "Level",
    "Link",
    "Milestone",
    "NotTold",
    "Notifier",
    "RetryLater",
    "Target",
    "TargetContext",
    "open_targets",
]
