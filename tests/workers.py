"""Workers of a data-parallel training as plain processes, without Ray."""

import multiprocessing
import pickle

import torch

from trainers.batches import Share
from trainers.distributed import Training, Worker, join, leave, listen
from trainers.loop import TrainedEpoch

ADDRESS = "127.0.0.1"
LIMIT_S = 120


def follow(pipe, share, meeting):
    """Answer for the worker of rank 1 until the pipe says None."""
    torch.set_num_threads(1)
    join(share, meeting, ADDRESS, torch.device("cpu"))
    worker = Worker(share)
    while (order := pickle.loads(pipe.recv_bytes())) is not None:
        if isinstance(order, int):
            found = worker.train(order)
            pipe.send(found if isinstance(found, TrainedEpoch) else repr(found))
        else:
            spec, data, training = order
            worker.take(training.begin(spec, data))
    leave()


class Pair:
    """This process, of rank 0, and another, which builds networks of `spec`; `train` is a `TrainEpoch`."""

    def __init__(self):
        listener = listen(ADDRESS)
        self._pipe, other = multiprocessing.Pipe()
        meeting = listener.getsockname()[:2]
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=follow, args=(other, Share(1, 2), meeting), daemon=True)
        self.process.start()
        join(Share(0, 2), meeting, ADDRESS, torch.device("cpu"), listener)
        self._worker, self._step, self.taken, self.spec = Worker(Share(0, 2)), None, 0, None

    def train(self, due):
        if due.step is not self._step:
            self._step, self.taken = due.step, self.taken + 1
            self._send((self.spec, due.data, Training.of(due)))
            self._worker.take(due)
        self._send(due.epoch)
        found = self._worker.train(due.epoch)
        assert self._pipe.poll(LIMIT_S)
        self.others = self._pipe.recv()
        return found

    def _send(self, order):
        self._pipe.send_bytes(pickle.dumps(order))

    def close(self):
        self._send(None)
        leave()
        self.process.join(10)
        self.process.kill()
        assert self.process.exitcode == 0
