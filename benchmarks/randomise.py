"""Random values for every weight and statistic of a model, so that nothing is trivially zero.

Freshly made models hide mistakes: LayerScale near 0, norms with gain 1 and bias 0, running
statistics of mean 0 and variance 1, relative position biases of 0, class tokens of 0.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_GAIN = re.compile(r"(^|[._])(weight|gamma|gain|scale|ls\d*|layer_scale\w*|temperature|alpha)\d*$")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every running statistic a random value, in place.

    Matrices and kernels are drawn with variance 1 / fan-in; gains (norm weights, LayerScale,
    temperatures) from 0.5 to 1.5; other vectors with deviation 0.3. Buffers other than running
    statistics (masks, indices, position tables) are left as they are. The model is put into eval
    mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval().requires_grad_(False)


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    shape = parameter.shape
    inner = [size for size in shape if size != 1]
    if len(inner) <= 1:
        if _GAIN.search(name):
            return 0.5 + torch.rand(shape, generator=generator)
        return 0.3 * torch.randn(shape, generator=generator)
    fan_in = max(1, parameter.numel() // shape[0])
    return torch.randn(shape, generator=generator) * fan_in**-0.5
