"""The two smallest: a multi-layer perceptron and LeNet."""

import torch
from torch import nn

from .network import Network, finish, image


def mlp(small: bool, batch: int = 1) -> Network:
    """784-512-512-10, ReLU (small: 64-48-48-10)."""
    width, hidden = (64, 48) if small else (784, 512)
    return finish(
        lambda: nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        ),
        {"x": torch.randn(batch, width, generator=torch.Generator().manual_seed(1))},
        ("logits",),
    )


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling, three fully connected layers."""

    def __init__(self, channels: tuple[int, int], size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels[0], 5, padding=2)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        side = (size // 2 - 4) // 2
        self.fc1 = nn.Linear(channels[1] * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = torch.relu(self.fc1(x))
        return torch.log_softmax(self.fc3(torch.sigmoid(self.fc2(x))), dim=-1)


def lenet(small: bool, batch: int = 1) -> Network:
    size = 16 if small else 28
    return finish(lambda: LeNet((6, 16), size), {"image": image(1, size, batch)}, ("log_probabilities",))
