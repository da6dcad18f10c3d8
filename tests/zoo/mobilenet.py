"""MobileNetV2 (Sandler et al., 2018): inverted residuals with depthwise convolutions and ReLU6."""

from torch import nn

from .network import Network, finish, image

# expansion, output channels, repeats, stride of the first repeat (table 2 of the paper)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
SMALL_STAGES = ((1, 8, 1, 1), (4, 12, 2, 2), (6, 24, 2, 2))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [*conv_bn(inputs, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        layers += [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        layers += conv_bn(hidden, outputs, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self, stages, stem: int, last: int, classes: int):
        super().__init__()
        layers = [*conv_bn(3, stem, 3, 2), nn.ReLU6()]
        inputs = stem
        for expansion, outputs, repeats, stride in stages:
            for index in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        layers += [*conv_bn(inputs, last, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        return self.head(self.features(x).mean([2, 3]))


def mobilenet_v2(small: bool, size: int | None = None, batch: int = 1) -> Network:
    size = size or (40 if small else 224)
    arguments = (SMALL_STAGES, 8, 48, 10) if small else (STAGES, 32, 1280, 1000)
    return finish(lambda: MobileNetV2(*arguments), {"image": image(3, size, batch)}, ("logits",))
