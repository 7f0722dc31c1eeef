"""Matrix products use one thread: in every command, and in a tile that anybody's program reconstructs."""

import subprocess
import sys

import numpy as np
import pytest

from opticstream.system.cores import one_blas_thread

THREADS = """
import contextlib, sys
from threadpoolctl import threadpool_info
def threads():
    import numpy
    print({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
sys.argv = ["opticstream", "--version"]
from opticstream.cli import main
with contextlib.suppress(SystemExit):
    main()
threads()
"""


def threads_after_a_command(environment):
    environment = {"PATH": "/usr/bin:/bin", **environment}
    said = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[-1]


def test_every_command_begins_with_one_thread():
    assert threads_after_a_command({}) == "{1}"


def test_a_number_that_the_environment_has_stays():
    if np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"] != "scipy-openblas":
        pytest.skip("NumPy here has another library than OpenBLAS")
    assert threads_after_a_command({"OPENBLAS_NUM_THREADS": "2"}) == "{2}"


def test_blocks_of_several_threads_may_overlap():
    from threadpoolctl import threadpool_info

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    outside = threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads() == {1}
    second.__exit__(None, None, None)
    assert threads() == outside
