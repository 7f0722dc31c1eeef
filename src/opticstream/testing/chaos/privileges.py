"""Programs that obey file permissions even where the tests run as root."""

from __future__ import annotations

import ctypes
import sys

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


def obey_permissions() -> None:
    """Ask Linux that the program that is about to be executed may read and write only what permissions allow.

    For `preexec_fn` of `subprocess`. Root loses the capabilities that let it read everything, others have none.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
