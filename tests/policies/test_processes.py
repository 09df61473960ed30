"""Do worker processes pass errors on, keep one thread, and die with their parent?"""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from policies.processes import Processes

PARENT = """
import time
from policies.processes import Processes
from tests_policies_workers import echo
with Processes(2, echo, 1) as processes:
    processes.send(0, 5)
    print(processes.results()[0], flush=True)
    time.sleep(100)
"""

WORKERS = '''
"""Workers for the tests: spawned processes import them by name."""
import os
import torch

def echo(jobs, offset):
    for job in jobs:
        yield job + offset

def threads(jobs):
    for _ in jobs:
        yield torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]

def fails(jobs):
    for job in jobs:
        if job == "user":
            raise ValueError("a message for the user")
        if job == "killed":
            os.kill(os.getpid(), 9)
        raise KeyError("a bug")
        yield
'''


@pytest.fixture
def workers(tmp_path, monkeypatch):
    (tmp_path / "tests_policies_workers.py").write_text(WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import tests_policies_workers

    return tests_policies_workers


def test_jobs_come_back_from_the_process_that_had_them(workers):
    with Processes(2, workers.echo, 100) as processes:
        for job in range(4):
            processes.send(job % 2, job)
        got = []
        while len(got) < 4:
            got += processes.results()
    assert sorted(got) == [(0, 100), (0, 102), (1, 101), (1, 103)]


def test_a_worker_has_one_thread_and_the_parent_keeps_its_environment(workers):
    before = os.environ.get("OMP_NUM_THREADS")
    with Processes(1, workers.threads) as processes:
        processes.send(0, None)
        assert processes.results() == [(0, (1, "1"))]
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ("user", ValueError, "^a message for the user$"),
        ("bug", RuntimeError, "KeyError: 'a bug'"),
        ("killed", RuntimeError, "exit code -9"),
    ],
)
def test_errors_of_a_worker_reach_the_caller(workers, job, kind, message):
    with pytest.raises(kind, match=message), Processes(1, workers.fails) as processes:
        processes.send(0, job)
        processes.results()


def test_workers_end_when_their_parent_is_killed(workers, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "(0, 6)\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.time() + 20
    while time.time() < deadline and any(_alive(child) for child in children):
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)


def _alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
