"""What `opticstream doctor` looks at: this host, the server, a project. It changes nothing.

To add a check, write a function that takes a `Scene` and yields findings, and add a line to `CHECKS`.
"""

from opticstream.flows.doctor._checks import Check, CheckResult, Finding, run_checks
from opticstream.flows.doctor._scene import Scene
from opticstream.flows.doctor._table import CHECKS

__all__ = ["CHECKS", "Check", "CheckResult", "Finding", "Scene", "run_checks"]
