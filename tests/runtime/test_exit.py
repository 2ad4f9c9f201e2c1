"""However a program ends, nothing stays: no process, no segment of shared memory, no open port beyond loopback."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def marked(mark):
    """The processes that inherited ``mark`` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AUTOPAR_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
    return found


def segments():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.fixture
def mark():
    """What a test's processes have in their environment; none of them outlives the test."""
    mark = uuid.uuid4().hex
    yield mark
    for process in marked(mark):
        process.kill()


def run(mode, mark, tmp_path):
    """Starts the script, and returns once it has run some steps."""
    # A Ray on one machine listens on loopback if it is told that it cannot span machines.
    environment = os.environ | {"AUTOPAR_TEST": mark, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.script", mode],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process.stdout:  # it says nothing more
        assert process.stdout.readline() == "ready\n", (tmp_path / "errors").read_text()
    return process


def ended(mark, before, seconds=15):
    until = time.monotonic() + seconds
    while (left := (marked(mark), segments() - before)) != ([], set()) and time.monotonic() < until:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("mode", ["once", "twice", "nodes"])
def test_a_program_that_ends_leaves_nothing(mode, mark, tmp_path):
    before = segments()
    process = run(mode, mark, tmp_path)
    assert process.wait(60) == 0, (tmp_path / "errors").read_text()
    assert ended(mark, before) == ([], set())


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_program_that_is_stopped_leaves_nothing(name, mark, tmp_path):
    before = segments()
    process = run("loop", mark, tmp_path)
    everywhere = {c.laddr.ip for p in marked(mark) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert everywhere <= {"127.0.0.1", "::ffff:127.0.0.1"}
    process.send_signal(getattr(signal, name))
    assert process.wait(20) != 0
    assert ended(mark, before) == ([], set())
    if name == "SIGINT":
        assert "KeyboardInterrupt" in (tmp_path / "errors").read_text()
