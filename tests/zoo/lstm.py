"""A sequence tagger: embedding, bidirectional LSTM, linear layer."""

import torch
from torch import nn

from .network import Network, finish, tokens


class Tagger(nn.Module):
    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, tags: int):
        super().__init__()
        self.words = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(2 * hidden, tags)

    def forward(self, input_ids):
        states, _ = self.lstm(self.words(input_ids))
        return torch.log_softmax(self.tags(states), dim=-1)


def lstm_tagger(small: bool, length: int | None = None, batch: int = 1) -> Network:
    """Two layers of 128 each way on 32 words (small: one of 24 on 7)."""
    sizes = (100, 16, 24, 1, 5) if small else (10000, 100, 128, 2, 17)
    ids = tokens(sizes[0], length or (7 if small else 32), batch)
    return finish(lambda: Tagger(*sizes), {"input_ids": ids}, ("log_probabilities",))
