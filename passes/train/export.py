"""Write a trained module as ONNX, and hold that sparsec finds in it the patterns that were trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from sparsec.passes.base import PassError
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_recognise import RecogniseNM
from sparsec.passes.train.masks import canonical
from sparsec.passes.train.modules import finish, sparse_weights


def export_onnx(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    **options,
) -> None:
    """Write ``module`` to ``path`` as ONNX, its masks made final; ``module`` itself stays as it is.

    ``inputs`` are example inputs, ``options`` go to ``torch.onnx.export``.  The file is read again: PassError
    where an N:M weight of the module is not in it with its zeros, and nothing is left at ``path`` then.
    """
    whole = finish(copy.deepcopy(module)).eval()
    path = Path(path)
    draft = path.with_name(f"{path.name}.part")
    options = {"dynamo": True, "external_data": False, "verbose": False} | options
    # The fused encoder layer of torch's fast path has no ONNX form.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # notes about the exporter itself, none about the numbers
            torch.onnx.export(
                whole, inputs, str(draft), input_names=input_names, output_names=output_names, **options
            )
        _check(module, ir.load(draft))
        draft.replace(path)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        draft.unlink(missing_ok=True)


def _check(module: nn.Module, model: ir.Model) -> None:
    """Every weight with a pattern is a layer of ``model`` with the same zeros, and N:M is recognised there.

    Zeros are compared and not values: an exporter may fold a BatchNormalization into the weight.
    """
    findings = {finding.node: finding for finding in RecogniseNM()(model).findings}
    layers = {_zeros(layer.weight): layer for layer in find_layers(model)}
    for name, layer, tensor, masked in sparse_weights(module):
        weight = canonical(getattr(layer, tensor).detach()).cpu().numpy()
        # One projection of queries, keys and values may be written as three.
        parts = (
            [weight] if _zeros(weight) in layers else np.split(weight, 3) if "proj" in tensor else [weight]
        )
        for part in parts:
            found = layers.get(_zeros(part))
            if found is None:
                raise PassError(f"export: {name} is not in the ONNX file with its zeros; is it used at all?")
            if not isinstance(masked.pattern, NM):
                continue
            kept = [found.node.attributes[key].as_int() for key in ("n", "m") if key in found.node.attributes]
            k = part.shape[-1]
            if not kept or NM(*kept).kept(k) > masked.pattern.kept(k):
                finding = findings.get(node_name(found.node))
                why = finding.reason if finding else "it is read as dense"
                raise PassError(f"export: {name} was trained to {masked.pattern}, but {why}")


def _zeros(weight: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return weight.shape, np.packbits(weight != 0).tobytes()
