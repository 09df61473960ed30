"""Is what a reader sees always whole, and always the newest?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.realtime.mailbox import Mailbox, memory_folder

WIDE = [("time_s", "<f8"), ("values", "<i8", (4096,))]


def test_newest_wins_and_numbers_count_every_record(tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "box", WIDE, create=True)
    assert box.newest()[0] == 0
    for number in range(1, 11):
        assert box.put((number / 10, np.full(4096, number))) == number
    sequence, record = Mailbox(tmp_path / "box", WIDE).newest()
    assert sequence == 10
    assert record["time_s"] == 1.0
    assert (record["values"] == 10).all()


def test_a_writer_that_is_killed_leaves_the_last_whole_record(tmp_path: Path) -> None:
    Mailbox(tmp_path / "box", WIDE, create=True).put((0.1, np.full(4096, 7)))
    box = Mailbox(tmp_path / "box", WIDE)
    torn = box._slots[2]  # the slot of record 2, half written when its writer died
    torn["before"][0] = 2
    torn["record"]["values"][0, :100] = 99
    sequence, record = box.newest()
    assert sequence == 1
    assert (record["values"] == 7).all()
    assert box.put((0.2, np.full(4096, 8))) == 2
    assert (box.newest()[1]["values"] == 8).all()


def test_no_reader_sees_half_a_record(tmp_path: Path) -> None:
    path = tmp_path / "box"
    box = Mailbox(path, WIDE, create=True)
    writer = (
        "import sys, numpy as np\nfrom deploy.realtime.mailbox import Mailbox\n"
        f"box = Mailbox(sys.argv[1], {WIDE!r})\n"
        "for number in range(1, 20001):\n    box.put((number, np.full(4096, number)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(path)]) as process:
        last, different = 0, 0
        while process.poll() is None or last < 20000:
            sequence, record = box.newest()
            assert (record["values"] == record["values"][0]).all()
            assert sequence >= last
            assert sequence in (0, int(record["time_s"]))
            different += sequence > last
            last = sequence
    assert process.returncode == 0
    assert different > 100  # they did run side by side


def test_another_dtype_or_file_is_refused(tmp_path: Path) -> None:
    Mailbox(tmp_path / "box", WIDE, create=True)
    with pytest.raises(ValueError, match="expected a mailbox of"):
        Mailbox(tmp_path / "box", [("a", "<f8")])
    size = (tmp_path / "box").stat().st_size
    (tmp_path / "other").write_bytes(bytes(size))
    with pytest.raises(ValueError, match="is not a mailbox"):
        Mailbox(tmp_path / "other", WIDE)


def test_a_folder_in_memory() -> None:
    folder = memory_folder()
    Mailbox(folder / "box", WIDE, create=True).put((1.0, np.zeros(4096)))
    (folder / "box").unlink()
    folder.rmdir()
