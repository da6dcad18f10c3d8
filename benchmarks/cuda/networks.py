"""Whole networks that are timed on a GPU, as torch modules: the other machine makes them again for its peers.

Weights are random, and every layer of a transformer has those of the first, so that artifacts are small
enough to be taken along.  Torch's are the same.
"""

import copy
from dataclasses import asdict, dataclass

import torch

import zoo


@dataclass(frozen=True)
class Entry:
    """``network`` of the zoo in ``shape``, compiled at ``precision`` with the pipeline ``passes``."""

    name: str
    network: str
    precision: str
    passes: str
    shape: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict:
        return asdict(self)


ENTRIES = (
    Entry("bert_128_f16_2of4", "bert", "fp16", "nm{n=2,m=4}", (("length", 128),)),
    Entry("bert_128_f32_2of4", "bert", "fp32", "nm{n=2,m=4,block=32}", (("length", 128),)),
    Entry("bert_512_f16_2of4", "bert", "fp16", "nm{n=2,m=4}", (("length", 512),)),
    Entry("resnet18_f16_2of4", "resnet18", "fp16", "nm{n=2,m=4}"),
)
#: Rows of an embedding.
_WORDS = 1024


def build(network: str, shape=(), small: bool = False) -> zoo.Network:
    """The network of the zoo with the layers of a transformer tied to its first one."""
    made = zoo.build(network, small=small, **dict(shape))
    layers = getattr(made.module, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        return made
    module = copy.deepcopy(made.module)
    module.layers = torch.nn.ModuleList([module.layers[0]] * len(layers))
    module.words = torch.nn.Embedding.from_pretrained(module.words.weight[:_WORDS].detach().clone())
    inputs = {name: x % _WORDS if name == "input_ids" else x for name, x in made.inputs.items()}
    return zoo.Network(module, inputs, made.outputs)
