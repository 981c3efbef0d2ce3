"""Models, batches and oracles that tests share: small, seeded, written without fxreduce."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.nn import functional

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.SiLU)
Entropies = dict[str, float]


class Small(nn.Module):
    """Two named rectifiers between convolutions, then a classifier; takes any image size."""

    def __init__(self, classes: int = 4, width: int = 8, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace)
        self.mix = nn.Conv2d(width, width, 1)
        self.act2 = nn.ReLU(inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(image)))
        x = self.act2(self.mix(x))
        return self.head(self.pool(x).flatten(1))


class Residual(nn.Module):
    """One rectifier module called twice, the second time behind a sum, as torchvision has it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """Expand, depthwise, project, with a skip, and tokens through an MLP behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.project = nn.Conv2d(12, 3, 1)
        self.norm = nn.LayerNorm(3)
        self.mlp = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.depth(self.expand(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.mlp(self.norm(tokens))
        return self.head(tokens.mean(1))


class Reordered(nn.Module):
    """Two inputs x, y ~ N(0, 1); sites a, b, c, of which b and c swap their order without a.

    z_a = x - 2, z_b = a + y - 1.2, z_c = -a + y - 1.3. With the rectifier a is almost always 0,
    so that p(b) = P(y > 1.2) = 0.115, p(c) = P(y > 1.3) = 0.097 and c has less entropy than b.
    As the identity a is x - 2: p(b) = P(x + y > 3.2) = 0.012, p(c) = P(y - x > -0.7) = 0.690.
    """

    def __init__(self) -> None:
        super().__init__()
        self.into_a, self.into_b, self.into_c = (nn.Linear(2, 1) for _ in range(3))
        self.a, self.b, self.c = nn.ReLU(), nn.ReLU(), nn.ReLU()
        with torch.no_grad():
            for layer, weight, bias in (
                (self.into_a, [1.0, 0.0], -2.0),
                (self.into_b, [0.0, 1.0], -1.2),
                (self.into_c, [0.0, 1.0], -1.3),
            ):
                layer.weight.copy_(torch.tensor([weight]))
                layer.bias.fill_(bias)

    def forward(self, point: Tensor) -> Tensor:
        a = self.a(self.into_a(point))
        return self.b(self.into_b(point) + a) + self.c(self.into_c(point) - a)


class Ladder(nn.Module):
    """Linear layers with one rectifier each, whose entropies follow from the biases alone."""

    def __init__(self, shifts: Sequence[float] = (3.0, 0.2, 1.5, 0.8)) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(1, 1) for _ in shifts)
        self.acts = nn.ModuleList(nn.ReLU() for _ in shifts)
        with torch.no_grad():
            for layer, shift in zip(self.into, shifts, strict=True):
                layer.weight.fill_(1.0)
                layer.bias.fill_(shift)

    def forward(self, x: Tensor) -> Tensor:
        parts = [act(into(x)) for into, act in zip(self.into, self.acts, strict=True)]
        return torch.cat(parts, -1)


class Functional(nn.Module):
    """Rectifiers as function, as method and in place, none of them a module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.one(x))
        x = self.two(x).relu_()
        return functional.gelu(self.three(x))


class Branching(nn.Module):
    """Control flow that depends on the data, which tracing refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model in eval mode, its weights and batch-norm statistics drawn from `seed`."""
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


class PlainBlock(nn.Module):
    """Convolutions with batch-norms in a row, of which a skip spans two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.out = nn.ReLU()
        self.fc = nn.Linear(8, 5)
        for conv in (self.conv1, self.conv2):  # as trained ones, largest in the middle
            middle = conv.weight.detach()[..., 1, 1].clone()
            with torch.no_grad():
                conv.weight.mul_(0.3)[..., 1, 1] = 3 * middle

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.fc(self.out(x + y).mean((2, 3)))


def images(*sizes: int, pixels: int = 8, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """A batch of images for each size."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, pixels, pixels)
    return [torch.randn(n, *shape, generator=generator).to(dtype) for n in sizes]


def points(count: int, features: int, seed: int = 1) -> Tensor:
    """Standard normal points, [count, features]."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


class Counting:
    """A loader that counts how often it is opened and how many batches it gives."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)
        self.opened = self.given = 0

    def __iter__(self) -> Iterator[Any]:
        self.opened += 1
        for batch in self.batches:
            self.given += 1
            yield batch


@contextmanager
def stored_inputs(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What each call of a rectifier module is given, by site name, a tensor for each batch."""
    stored: dict[str, list[Tensor]] = {}
    calls: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, args: Any) -> None:
            index = calls.get(path, 0)
            calls[path] = index + 1
            stored.setdefault(f"{path}#{index}" if index else path, []).append(args[0].clone())

        return keep

    handles = [model.register_forward_pre_hook(lambda *_: calls.clear())]
    for path, module in model.named_modules():
        if isinstance(module, RECTIFIERS):
            handles.append(module.register_forward_pre_hook(hook(path)))
    try:
        yield stored
    finally:
        for handle in handles:
            handle.remove()


def stored_entropies(
    model: nn.Module, batches: Iterable[Tensor], axis: int = 1, code: bool = False
) -> Entropies:
    """The entropy of every site from its stored pre-activations, as the papers define it."""
    with torch.no_grad(), stored_inputs(model) as stored:
        for batch in batches:
            model(batch)
    if code:
        return {
            name: float(torch.stack([entropy_of(z, axis, code=True) for z in given]).mean())
            for name, given in stored.items()
        }
    return {
        name: float(entropy_of(torch.cat([by_channel(z, axis) for z in given]), 1).mean())
        for name, given in stored.items()
    }


def by_channel(z: Tensor, axis: int) -> Tensor:
    """The values as [count, C]."""
    return z.movedim(axis, -1).flatten(0, -2)


def entropy_of(z: Tensor, axis: int, code: bool = False) -> Tensor:
    """Entropy of each channel's sign in bits; zeros are left out, or ON for EASIER's code."""
    z = by_channel(z, axis).double()
    on, off = ((z >= 0) if code else (z > 0)).double().sum(0), (z < 0).double().sum(0)
    p = on / (on + off).clamp(min=1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0))


def snapshot(model: nn.Module | ExportedProgram) -> dict[str, Any]:
    """All of a model that a library could change behind its owner's back."""
    if isinstance(model, ExportedProgram):
        return {"code": str(model.graph), "state": _bits(model.state_dict)}
    return {
        "state": _bits(model.state_dict()),
        "identities": {n: id(t) for n, t in (*model.named_parameters(), *model.named_buffers())},
        "modules": {name: (id(m), m.training) for name, m in model.named_modules()},
        "grad": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "hooks": {
            name: [
                list(getattr(m, each))
                for each in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
            ]
            for name, m in model.named_modules()
        },
        "code": model.code if isinstance(model, GraphModule) else "",
        "meta": [set(n.meta) for n in model.graph.nodes] if isinstance(model, GraphModule) else [],
    }


def _bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: bytes(t.detach().flatten().view(torch.uint8).tolist()) for name, t in state.items()
    }
