"""How is a step that always does the same on a GPU launched at once, instead of kernel by kernel?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3  # calls before the recording, in which libraries choose kernels and allocate


class CudaGraph:
    """A recorded function of tensors; calling it copies the new inputs over the old ones and replays.

    `function` must work on fixed shapes and keep its state in tensors that it changes in place (a ring with
    `fixed_shapes`). Recording calls it a few times with `inputs`, so it leaves that state behind. The result lies in
    one tensor that the next call overwrites. Raises ValueError where an input is not on a GPU.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        if not all(one.is_cuda for one in inputs):
            raise ValueError(f"CUDA graphs need inputs on a GPU, got {', '.join(str(one.device) for one in inputs)}")
        self._inputs = [one.clone() for one in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on new inputs of the same shapes."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output
