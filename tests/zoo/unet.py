"""U-Net (Ronneberger et al., 2015), padded; the way up is a transposed convolution or a resize."""

import torch
from torch import nn

from .network import Network, finish, image


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class Up(nn.Module):
    """Twice the size, half the channels, then join with the skipped tensor."""

    def __init__(self, inputs: int, mode: str):
        super().__init__()
        self.mode = mode
        if mode == "transpose":
            self.grow = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        else:
            self.grow = nn.Conv2d(inputs, inputs // 2, 1)
        self.join = double(inputs, inputs // 2)

    def forward(self, x, skip):
        if self.mode == "transpose":
            x = self.grow(x)
        else:
            x = nn.functional.interpolate(self.grow(x), scale_factor=2, mode=self.mode, align_corners=False)
        return self.join(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    def __init__(self, width: int, depth: int, mode: str, classes: int = 2):
        super().__init__()
        self.stem = double(3, width)
        self.down = nn.ModuleList(double(width << i, width << (i + 1)) for i in range(depth))
        self.up = nn.ModuleList(Up(width << (i + 1), mode) for i in reversed(range(depth)))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        x = self.stem(x)
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(nn.functional.max_pool2d(x, 2))
        for layer in self.up:
            x = layer(x, skips.pop())
        return torch.softmax(self.head(x), dim=1)


def unet(small: bool, size: int | None = None, batch: int = 1) -> Network:
    """With transposed convolutions; 32 channels and 4 levels at 128x128 (small: 8, 2, 24x24)."""
    return _build("transpose", small, size, batch)


def unet_resize(small: bool, size: int | None = None, batch: int = 1) -> Network:
    """The same with bilinear resizing."""
    return _build("bilinear", small, size, batch)


def _build(mode: str, small: bool, size: int | None, batch: int) -> Network:
    width, depth, default = (8, 2, 24) if small else (32, 4, 128)
    inputs = {"image": image(3, size or default, batch)}
    return finish(lambda: UNet(width, depth, mode), inputs, ("mask",))
