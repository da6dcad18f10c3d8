"""What training tools leave in a weight, exported by torch: folded, recognised, and right to the end.

One network has a layer for each of them; every layer reads the same input and gives an output of its own.
"""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from sparsec.compiler.ingest import ingest  # noqa: E402
from sparsec.passes import run_pipeline  # noqa: E402

IN, OUT = 32, 64


def two_of_four(weight: torch.Tensor, n: int = 2, m: int = 4, block: int = 1) -> torch.Tensor:
    """bool of the shape of `weight [out, in, ...]`: the largest n of each m inputs stay."""
    flat = weight.detach().abs().transpose(1, -1)
    groups = flat.reshape(flat.shape[0] // block, block, *flat.shape[1:-1], -1, m).sum(1)
    rank = groups.argsort(-1, descending=True).argsort(-1)
    kept = (rank < n).repeat_interleave(block, 0).reshape(flat.shape)
    return kept.transpose(1, -1)


def linear() -> nn.Linear:
    return nn.Linear(IN, OUT)


def masked(**pattern) -> nn.Linear:
    layer = linear()
    with torch.no_grad():
        layer.weight *= two_of_four(layer.weight, **pattern)
    return layer


class Weight(nn.Module):
    """A parametrisation from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, weight):
        return self.function(weight)


def parametrised(function, spread: float = 1.0) -> nn.Linear:
    """`spread`: how far weights that are to be cut off and weights that stay lie apart."""
    layer = linear()
    with torch.no_grad():
        sign, kept = torch.sign(layer.weight), two_of_four(layer.weight)
        layer.weight.copy_(sign * torch.where(kept, spread + layer.weight.abs(), layer.weight.abs() / 4))
    parametrize.register_parametrization(layer, "weight", Weight(function), unsafe=True)
    return layer


def topk_mask(weight):
    """SR-STE: the mask is computed in every forward pass."""
    groups = weight.abs().reshape(-1, 4)
    mask = torch.zeros_like(groups).scatter(1, groups.topk(2, dim=1).indices, 1.0)
    return weight * mask.reshape(weight.shape)


def pdp(temperature):
    """PDP's soft mask; small temperatures leave weights next to zero."""

    def function(weight):
        squares = torch.stack([weight**2, torch.full_like(weight, 0.25)])
        return weight * torch.softmax(squares / temperature, 0)[0]

    return function


class Stored(nn.Module):
    """A weight kept in another form than that of its use."""

    def __init__(self, weight, use):
        super().__init__()
        self.register_buffer("weight", weight)
        self.use = use

    def forward(self, x):
        return self.use(x, self.weight)


def quantised(x, weight):
    """int8 about a zero point, a scale for each output."""
    scale = torch.linspace(0.01, 0.02, OUT).unsqueeze(1)
    return nn.functional.linear(x, (weight.float() - 3.0) * scale)


def fake_quantised(x, weight):
    scale, zero = torch.full((OUT,), 0.02), torch.zeros(OUT, dtype=torch.int32)
    return nn.functional.linear(x, torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -128, 127))


class Image(nn.Module):
    """A convolution of the input as an image of IN channels."""

    def __init__(self, layer):
        super().__init__()
        with torch.no_grad():
            weight = layer.weight
            if isinstance(layer, nn.ConvTranspose2d):
                weight *= two_of_four(weight.transpose(0, 1)).transpose(0, 1)
            else:
                weight *= two_of_four(weight)
        self.layer = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)).eval()
        with torch.no_grad():
            self.layer[1].running_mean.uniform_()
            self.layer[1].running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.layer(x.transpose(1, 2).unsqueeze(-1))


class Tied(nn.Module):
    """An output head that shares its 2:4 weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(OUT, IN)
        with torch.no_grad():
            self.embedding.weight *= two_of_four(self.embedding.weight)

    def forward(self, x):
        return (x + self.embedding(torch.arange(5))) @ self.embedding.weight.T


class Structured(nn.Module):
    """A layer whose rows `ln_structured` has cut, between two others."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(IN, OUT), nn.Linear(OUT, IN)
        prune.ln_structured(self.up, "weight", amount=0.5, n=2, dim=0)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def pruned(method, **options) -> nn.Linear:
    layer = linear()
    method(layer, "weight", **options)
    return layer


def sparsified(**options) -> nn.Linear:
    from torch.ao.pruning import WeightNormSparsifier

    layer = nn.Sequential(linear())
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, **options)
    sparsifier.prepare(layer, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    return layer  # the mask stays a parametrisation


def semi_structured() -> nn.Linear:
    """Through torch's own compressed form of 2:4 and back."""
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    layer = masked()
    packed = conversions.sparse_semi_structured_from_dense_cutlass(layer.weight.detach().half())
    with torch.no_grad():
        layer.weight.copy_(conversions.sparse_semi_structured_to_dense_cutlass(*packed).float())
    return layer


def by_cut(weight):
    return weight * (weight.abs() > 0.5).float()


def by_where(weight):
    return torch.where(weight.abs() > 0.5, weight, torch.zeros(()))


def soft_threshold(weight):
    """AutoSparse and STR: sign(w) relu(|w| - sigmoid(s)), the threshold of each output learned."""
    return torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(torch.zeros(OUT, 1)))


def stored(use, make=lambda weight: weight):
    return lambda: Stored(make(masked().weight.detach()).contiguous(), use)


F = nn.functional.linear
LAYERS = {
    "blocks": lambda: pruned(
        prune.custom_from_mask, mask=two_of_four(torch.randn(OUT, IN), n=2, m=4, block=16)
    ),
    "l1_unstructured": lambda: pruned(prune.l1_unstructured, amount=0.8),
    "weight_norm_sparsifier": lambda: sparsified(sparse_block_shape=(1, 4), zeros_per_block=2),
    "wide_sparsifier": lambda: sparsified(sparse_block_shape=(1, 8), zeros_per_block=6),
    "semi_structured": semi_structured,
    "autosparse": lambda: parametrised(soft_threshold),
    "gradual_magnitude": lambda: parametrised(by_cut),
    "where": lambda: parametrised(by_where),
    "sr_ste": lambda: parametrised(topk_mask),
    "pdp": lambda: parametrised(pdp(1e-4)),
    "pdp_unfinished": lambda: parametrised(pdp(1e-2)),
    "weight_norm": lambda: parametrizations.weight_norm(masked()),
    "half": stored(lambda x, w: F(x, w.float()), torch.Tensor.half),
    "bfloat16": stored(lambda x, w: F(x, w.float()), torch.Tensor.bfloat16),
    "int8": stored(quantised, lambda w: (w * 400).to(torch.int8) + 3),
    "qdq": stored(fake_quantised, lambda w: 5 * w),
    "transposed": stored(lambda x, w: x @ w, torch.t),
    "reshaped": stored(lambda x, w: F(x, w.view(OUT, IN)), torch.flatten),
    "einsum": stored(lambda x, w: torch.einsum("bsk,nk->bsn", x, w)),
    "batched": stored(lambda x, w: x @ w, lambda w: w.T[None]),
    "wrong_axis": stored(lambda x, w: x @ w[:IN]),
    "tied": Tied,
    "structured": Structured,
    "convolution": lambda: Image(nn.Conv2d(IN, OUT, (3, 1), padding=(1, 0))),
    "grouped": lambda: Image(nn.Conv2d(IN, OUT, (3, 1), groups=2)),
    "upsampling": lambda: Image(nn.ConvTranspose2d(IN, OUT, (4, 2), 2, (1, 0))),
}
EXPECTED = ("NMMatMul", "2:4: keeps 50.0 %")
#: The operator of the last layer and how its reason begins, where they are others.
OTHERS = {
    "blocks": ("NMMatMul", "2:4x16: keeps 50.0 %"),
    "l1_unstructured": ("NMMatMul", "unstructured zeros: keeps 20.0 %"),
    "wide_sparsifier": ("NMMatMul", "2:8: keeps 25.0 %"),
    "pdp_unfinished": ("MatMul", "50.0 % of the weights are not zero but below 0.0001"),
    "wrong_axis": ("MatMul", "the pattern 2:4 runs along output channels"),
    "structured": ("MatMul", ""),
    "convolution": ("NMConv", "2:4: keeps 50.0 %"),
    "grouped": ("NMConv", "2:4: keeps 50.0 %"),
    "upsampling": ("NMConvTranspose", "2:4: keeps 50.0 %"),
}


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([make() for make in LAYERS.values()])

    def forward(self, x):
        return tuple(torch.sin(layer(x)) for layer in self.layers)


@pytest.fixture(scope="module")
def network():
    return Everything().eval()


@pytest.fixture(scope="module", params=["torchscript", "dynamo"])
def exported(request, network, tmp_path_factory):
    """The path of the network's export and an input for it."""
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    options = {
        "dynamo": request.param == "dynamo",
        "opset_version": 18,
        "output_names": [f"{name}_out" for name in LAYERS],
    }
    if options["dynamo"]:
        options |= {"verbose": False, "external_data": False, "optimize": False}
    else:
        options |= {"do_constant_folding": False}
    x = torch.randn(2, 5, IN)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), input_names=["x"], **options)
    return path, x.numpy()


def layer_of(value: ir.Value) -> ir.Node:
    """The last layer before `value`."""
    kinds = ("MatMul", "Gemm", "Conv", "ConvTranspose")
    while (node := value.producer()).op_type.removeprefix("NM") not in kinds:
        value = next(v for v in node.inputs if v is not None and v.const_value is None)
    return node


def test_every_layer_is_recognised_or_says_why(exported, network, ort_run):
    path, x = exported
    before = ort_run(path, {"x": x}, plain=True)  # else it quantises the activations of `qdq`
    model = ingest(path)
    findings = {}
    for finding in run_pipeline(model):
        findings.setdefault(finding.node, []).append(finding)
    for output in model.graph.outputs:
        node, (op, reason) = layer_of(output), OTHERS.get(output.name.removesuffix("_out"), EXPECTED)
        assert node.op_type.replace("Gemm", "MatMul") == op, output.name
        if reason:
            assert findings[node.name][-1].reason.startswith(reason), output.name
    (removed,) = (f for all_ in findings.values() for f in all_ if f.pass_name == "remove-dead-channels")
    assert removed.reason.startswith("32 of 64 output channels carry nothing")
    after = ort_run(ir.to_proto(model).SerializeToString(), {"x": x})
    with torch.no_grad():
        wanted = dict(zip(before, network(torch.from_numpy(x)), strict=True))
    for name, value in after.items():
        np.testing.assert_allclose(value, before[name], rtol=0, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("exported", ["dynamo"], indirect=True)
def test_compiled_it_gives_the_same_numbers(exported, run_graph, ort_run, agree):
    path, x = exported
    found = run_graph(onnx.load(path), {"x": x})
    agree(found.outputs, ort_run(path, {"x": x}, plain=True))
