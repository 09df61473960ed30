"""Are the dtypes of a training step those that `models/precision.py` promises?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.small import CONFIG, codes, make
from toto_robot.models.toto import RMSNorm
from toto_robot.pretrain.optim import adamw


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float32])
def test_products_in_bf16_and_all_else_in_float32(products: torch.dtype) -> None:
    model = make(CONFIG).train()
    seen: dict[str, set[torch.dtype]] = {"linear": set(), "norm": set()}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, result: seen["linear"].add(result.dtype))
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _, __, result: seen["norm"].add(result.dtype))
    ids, targets = model.pack(codes(2, CONFIG.frames))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=products == torch.bfloat16):
        output = model(ids, layers=range(CONFIG.layers + 1), targets=targets)
        per_token = model(ids, targets=targets, per_token=True).per_token
    assert seen == {"linear": {products}, "norm": {torch.float32}}
    assert {x.dtype for x in (*output.features.values(), output.loss, per_token.nats)} == {torch.float32}
    optimizer = adamw(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    output.loss.backward()
    optimizer.step()
    kept = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
