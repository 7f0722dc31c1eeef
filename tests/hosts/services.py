"""PostgreSQL and Redis on a host, as Debian's packages start them when they are installed."""

from __future__ import annotations

import shlex
import time

from tests.hosts.namespaces import Host
from tests.services import program

_POSTGRESQL = """
install -d -o postgres -g postgres /run/postgresql /var/lib/postgresql
cd /var/lib/postgresql
runuser -u postgres -- {initdb} -D main --auth-local=peer --auth-host=scram-sha-256 --no-sync --no-instructions \
    -E UTF8 --locale=C
exec runuser -u postgres -- {postgres} -D main -k /run/postgresql -c listen_addresses=127.0.0.1 -c fsync=off
"""
_REDIS = "mkdir /var/lib/redis; exec {redis} --dir /var/lib/redis --bind 127.0.0.1 --appendonly yes"


def start_services(host: Host, /) -> None:
    """Start both on a host, on the ports of the packages, and wait until they answer; skip where one is missing."""
    programs = {
        name: shlex.quote(program(name)) for name in ("initdb", "postgres", "psql", "redis-server", "redis-cli")
    }
    host.start("postgresql", _POSTGRESQL.format(initdb=programs["initdb"], postgres=programs["postgres"]))
    host.start("redis", _REDIS.format(redis=programs["redis-server"]))
    _wait(host, f"cd /; runuser -u postgres -- {programs['psql']} -c 'select 1' >/dev/null")
    _wait(host, f"{programs['redis-cli']} ping | grep -q PONG")


def _wait(host: Host, question: str) -> None:
    end = time.monotonic() + 120
    script = f"for i in $(seq 100); do ({question}) 2>/dev/null && exit 0; sleep 0.2; done; {question}"
    while True:
        try:
            host.run(script)
            return
        except AssertionError:
            assert time.monotonic() < end
