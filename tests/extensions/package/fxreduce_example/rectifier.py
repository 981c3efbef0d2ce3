"""A rectifier: the squared ReLU of Primer (So et al., 2021)."""

from torch import Tensor, nn

from fxreduce.registry import register_rectifier


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², of any shape."""
    return x.relu().square()


class SquaredReLU(nn.Module):
    """The same as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)


def register() -> None:
    """Let fxreduce see its calls as sites."""
    register_rectifier("squared_relu", modules=[SquaredReLU], functions=[squared_relu])
