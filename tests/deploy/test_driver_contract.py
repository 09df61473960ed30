"""Does every driver keep one contract: each real client library, unmodified, against the emulator, and the twin?"""

import ast
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.drivers import versions

PROGRAM = Path(__file__).with_name("driver_contract.py")
DRIVERS = ("franky", "pylibfranka", "panda", "twin")
LIMIT_S = 300.0


def checks():
    """The names of the functions marked with @check."""
    tree = ast.parse(PROGRAM.read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]


def missing(driver):
    return driver != "twin" and versions.installed(driver) is None


@pytest.fixture(scope="module")
def results(request):
    """Outcome of every check of every driver; two drivers run beside each other, a process each."""
    wanted = {
        item.callspec.params["driver"]
        for item in request.session.items
        if "callspec" in dir(item) and item.fspath == request.path and "driver" in item.callspec.params
    }
    root = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))

    def run(driver):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), driver],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=LIMIT_S,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line["check"]: line["failure"] for line in lines}, done.stdout

    chosen = [driver for driver in DRIVERS if driver in wanted and not missing(driver)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(chosen, pool.map(run, chosen), strict=True))


@pytest.mark.parametrize("name", checks())
@pytest.mark.parametrize("driver", DRIVERS)
def test_contract(driver, name, results):
    if missing(driver):
        pytest.skip(f"{versions.DISTRIBUTIONS[driver]} is not installed: {versions.install_command(driver)}")
    outcomes, output = results[driver]
    assert name in outcomes, f"the process of {driver} ended before this check:\n{output[-3000:]}"
    assert outcomes[name] is None, outcomes[name]
