"""What it means that a host's clock differs from the server's, and from when on it matters.

Claims do not depend on the clocks of hosts: leases are compared by the clock of the file server, or, where each host
stamps its own files, are watched before they are taken over (`opticstream.state.claims`). What does depend on them: a
worker asks for runs that are due by its own clock, so that one that is behind starts each run so much later; and the
window in which events share a run is measured from the time of the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opticstream.flows.contact import Contact

WARNED_S = 2.0
"""Difference from which on runs noticeably start late."""
SHARE_OF_LEASE = 1 / 3
"""Part of a lease by which a clock may differ: a holder renews its lease every third, so two thirds are spare, of which
half stays for slow disks and networks."""


@dataclass(frozen=True)
class Skew:
    """How much a host's clock differs from the server's, judged."""

    level: Literal["ok", "warning", "problem"]
    said: str
    advice: str = ""


def judged_skew(contact: Contact, /, *, lease_s: float) -> Skew | None:
    """Return what the difference of the clocks means; None where the server does not tell its time.

    Parameters
    ----------
    contact : Contact
        What a look at the server has found.
    lease_s : float
        Lease of claims, in seconds.
    """
    if contact.skew_s is None:
        return None
    size_s, exact_s = abs(contact.skew_s), contact.skew_error_s
    if size_s <= WARNED_S + exact_s:
        return Skew("ok", f"this host's clock agrees with the server's within {WARNED_S + exact_s:.1f} s")
    direction = "behind" if contact.skew_s < 0 else "ahead of"
    effect = "each run starts so much later here" if contact.skew_s < 0 else "times in records and logs are wrong"
    said = f"this host's clock is {size_s:.0f} s {direction} the server's: {effect}"
    advice = "set the clocks of both hosts by NTP (`timedatectl set-ntp true`; `chronyc tracking` shows the state)"
    return Skew("problem" if size_s > lease_s * SHARE_OF_LEASE else "warning", said, advice)
