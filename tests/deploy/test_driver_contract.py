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
from deploy.drivers.base import NotInstalled
from deploy.drivers.connect import make_driver

PROGRAM = Path(__file__).with_name("driver_contract.py")
DRIVERS = ("franky", "pylibfranka", "panda", "twin", "franky-cartesian")  # the last: its Cartesian tracker
CLIENTS = {"franky": "fr3", "pylibfranka": "fr3", "panda": "fer"}
LIMIT_S = 300.0


def checks():
    """The names of the functions marked with @check."""
    tree = ast.parse(PROGRAM.read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]


def client(driver):
    return driver.partition("-")[0]


def missing(driver):
    return driver != "twin" and versions.installed(client(driver)) is None


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
        package = versions.DISTRIBUTIONS[client(driver)]
        pytest.skip(f"{package} is not installed: {versions.install_command(client(driver))}")
    outcomes, output = results[driver]
    assert name in outcomes, f"the process of {driver} ended before this check:\n{output[-3000:]}"
    assert outcomes[name] is None, outcomes[name]


@pytest.mark.parametrize(("name", "robot"), CLIENTS.items())
def test_a_missing_library_is_an_error_with_the_command_that_installs_it(name, robot, monkeypatch):
    driver = make_driver(name, robot=robot, address="127.0.0.93")  # nobody is there, and nobody is asked
    monkeypatch.setitem(sys.modules, driver.module, None)
    with pytest.raises(NotInstalled) as caught:
        driver.connect()
    assert f"`{versions.install_command(name)}`" in str(caught.value)
    assert versions.DISTRIBUTIONS[name] in str(caught.value)


@pytest.mark.parametrize(("inside", "speaks"), [("0.15.0", 9), ("0.14.2", 8), ("0.9.2", 5), ("0.21.2", 10), (None, 10)])
def test_a_package_speaks_what_the_libfranka_inside_it_speaks(inside, speaks, tmp_path, monkeypatch):
    """Builds of franky for other robots have its name and its version; only the library's file tells them apart."""
    folder = tmp_path / "franky_control-2.0.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: franky-control\nVersion: 2.0.0\n")
    library = f"franky_control.libs/libfranka-0a1b2c3d.so.{inside},,\n" if inside else ""
    (folder / "RECORD").write_text(f"franky/__init__.py,,\n{library}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert versions.speaks("franky") == speaks


def test_a_driver_that_there_is_not_and_one_of_another_arm_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="franky, pylibfranka, panda, twin, got 'frankie', did you mean 'franky'"):
        make_driver("frankie", robot="fr3", address="127.0.0.93")
    with pytest.raises(ValueError, match=r"panda moves fer, not fr3.*franky"):
        make_driver("panda", robot="fr3", address="127.0.0.93")
