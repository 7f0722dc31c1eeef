"""The checks, in the order in which they are done and told."""

from __future__ import annotations

from opticstream.flows.doctor import _host, _project, _server
from opticstream.flows.doctor._checks import Check

CHECKS: tuple[Check, ...] = (
    Check("packages", _host.packages),
    Check("settings", _host.settings_in_use),
    Check("machine", _host.machine),
    Check("open files", _host.open_files),
    Check("programs", _host.programs),
    Check("home", _host.home),
    Check("home space", _host.home_space),
    Check("server", _server.server),
    Check("credentials", _server.credentials),
    Check("version", _server.version),
    Check("clock", _server.clock),
    Check("pools", _server.pools, needs=("server",)),
    Check("workers", _server.workers, needs=("server",), limit_s=60.0),
    Check("deployments", _server.deployments, needs=("server",), limit_s=120.0),
    Check("triggers", _server.triggers, needs=("server",), limit_s=120.0),
    Check("locks", _server.locks, needs=("server",), limit_s=60.0),
    Check("project", _project.project_file, limit_s=60.0),
    Check("project folder", _project.project_folder, needs=("project",), limit_s=60.0),
    Check("project space", _project.project_space, needs=("project",), limit_s=60.0),
    Check("engines", _project.project_engines, needs=("project",)),
    Check("raw folder", _project.raw_folder, needs=("project",), limit_s=60.0),
    Check("registered", _project.registered, needs=("server", "project"), limit_s=60.0),
    Check("stuck work", _project.stuck, needs=("project",), limit_s=120.0),
)
"""To add one, write a function that takes a `Scene` and yields findings, and name it here, with what it needs."""
