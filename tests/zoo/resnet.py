"""ResNet-18 and ResNet-50 (He et al., 2015; the stride of a bottleneck sits in its 3x3 convolution)."""

import torch
from torch import nn

from .network import Network, finish, image


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.first = conv_bn(inputs, width, 3, stride)
        self.second = conv_bn(width, width, 3)
        self.shortcut = None
        if stride != 1 or inputs != width:
            self.shortcut = conv_bn(inputs, width, 1, stride)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.reduce = conv_bn(inputs, width, 1)
        self.middle = conv_bn(width, width, 3, stride)
        self.expand = conv_bn(width, 4 * width, 1)
        self.shortcut = None
        if stride != 1 or inputs != 4 * width:
            self.shortcut = conv_bn(inputs, 4 * width, 1, stride)

    def forward(self, x):
        y = self.expand(torch.relu(self.middle(torch.relu(self.reduce(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, block: type[nn.Module], depths: tuple[int, ...], width: int, classes: int):
        super().__init__()
        self.stem = conv_bn(3, width, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks, inputs = [], width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, width << stage, stride))
                inputs = (width << stage) * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.blocks(self.pool(torch.relu(self.stem(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18(small: bool, size: int | None = None, batch: int = 1) -> Network:
    size = size or (40 if small else 224)
    depths, width, classes = ((1, 1, 1, 1), 16, 10) if small else ((2, 2, 2, 2), 64, 1000)
    inputs = {"image": image(3, size, batch)}
    return finish(lambda: ResNet(Basic, depths, width, classes), inputs, ("logits",))


def resnet50(small: bool, size: int | None = None, batch: int = 1) -> Network:
    size = size or (40 if small else 224)
    depths, width, classes = ((1, 1, 1, 1), 16, 10) if small else ((3, 4, 6, 3), 64, 1000)
    inputs = {"image": image(3, size, batch)}
    return finish(lambda: ResNet(Bottleneck, depths, width, classes), inputs, ("logits",))
