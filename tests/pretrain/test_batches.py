"""Is the stream of tokens the same for any number of processes and readers, and after a kill?"""

import hashlib
import itertools
import threading
import time

import pytest
import torch

from tests.pretrain.toy import toto_objective
from toto_robot.pretrain.batches import batches
from toto_robot.pretrain.distributed import Processes

STEPS = 12


def stream_hash(folder, size: int, workers: int, stops: tuple[int, ...] = ()) -> str:
    """Hash the windows of all steps, the processes' shares put together; begin anew at each of `stops`."""
    streams = []
    for rank in range(size):
        objective = toto_objective(folder, processes=Processes(rank=rank, size=size))
        read = []
        for start, stop in itertools.pairwise((0, *stops, STEPS)):
            with batches(objective.batch, range(start, STEPS), workers) as coming:
                read += list(itertools.islice(coming, stop - start))  # what was read ahead is lost, as in a kill
        streams.append(read)
    digest = hashlib.sha256()
    for shares in zip(*streams, strict=True):
        assert {len(share) for share in shares} == {8 // size}
        digest.update(torch.cat(shares).numpy().tobytes())
    return digest.hexdigest()


def test_stream_of_tokens_is_the_same_for_processes_readers_and_kills(tmp_path):
    plain = stream_hash(tmp_path, 1, 0)
    for size, workers in itertools.product((1, 2, 4), (0, 2)):
        assert stream_hash(tmp_path, size, workers) == plain, (size, workers)
        assert stream_hash(tmp_path, size, workers, stops=(3, 4, 9)) == plain, (size, workers)
    other = toto_objective(tmp_path)
    assert not torch.equal(other.batch(0), other.batch(1))  # the hash would see a change of order


def test_readers_work_ahead_and_no_further_than_asked():
    begun, gate = [], threading.Event()

    def read(number: int) -> torch.Tensor:
        begun.append(number)
        gate.wait(10)
        return torch.tensor(number)

    with batches(read, range(100), 2) as coming:
        gate.set()
        assert [int(next(coming)) for _ in range(5)] == [0, 1, 2, 3, 4]
        deadline = time.monotonic() + 10
        while len(begun) <= 5 and time.monotonic() < deadline:  # a busy machine starts the readers late
            time.sleep(0.01)
    assert 5 < len(begun) <= 5 + 2 * 2


def test_an_error_of_a_reader_comes_with_its_batch():
    def read(number: int) -> torch.Tensor:
        if number == 3:
            raise ValueError("shard 3 is damaged")
        return torch.tensor(number)

    with batches(read, range(10), 2) as coming:
        assert [int(next(coming)) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="shard 3 is damaged"):
            next(coming)


def test_processes_cannot_share_a_batch_unequally():
    with pytest.raises(ValueError, match="3 processes cannot share 8 samples equally; choose a batch_size"):
        Processes(rank=0, size=3).share(8)
