"""A network in int8 as ONNX Runtime's quantiser makes it: static QDQ, weights per channel, uint8 activations.

Of transformers the layers with weights are quantised, of other networks everything that the quantiser knows:
what is faster for the peers.  Ranges are those of the row's own inputs; speed does not depend on them, and
every engine gets the same file.  Zeros of a pruned weight stay zeros, since weights are quantised
symmetrically.
"""

from pathlib import Path

import numpy as np
import onnx

from .subjects import publish


def quantised(file: Path, feeds: Path) -> Path:
    """The int8 form of ``file``, calibrated with ``feeds``; made once, beside it."""
    target = file.with_suffix(".qdq.onnx")
    if not target.exists():
        publish(target, lambda draft: _quantise(file, feeds, draft))
    return target


def _quantise(file: Path, feeds: Path, draft: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            with np.load(feeds) as stored:
                self.left = [{name: stored[name] for name in stored.files}]

        def get_next(self):
            return self.left.pop() if self.left else None

    operators = {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
    transformer = "LayerNormalization" in operators
    quantize_static(
        file,
        draft,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if transformer else None,
        extra_options={"MatMulConstBOnly": transformer},
    )
