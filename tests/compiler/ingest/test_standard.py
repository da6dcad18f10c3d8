"""Every example of the ONNX standard: refused by name, or the same numbers as in ONNX Runtime.

A sixth of them runs always, all of them with --run-slow; there TVM's importer and its default build
must give the same numbers as well, which is what ``ingest/forms.py`` and ``normalise.py`` promise.
"""

import warnings
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.ingest import IngestError, ingest
from sparsec.compiler.ingest.structure import MAX_OPSET
from sparsec.compiler.ingest.table import OWN

# Inputs that are parameters in every real model, and without whose values there is no static shape.
PARAMETERS = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "ConstantOfShape": (0,),
    "CumSum": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "Loop": (0, 1),
    "MaxUnpool": (2,), "OneHot": (1, 2),
    "Pad": (1, 2, 3), "Range": (0, 1, 2), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,),
    "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,),
    "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip

# ONNX Runtime's own numbers differ from the standard's: NaN for -inf, or the other way round.
NOT_COMPARED = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
}


@cache
def cases() -> list:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def prepared(case):
    """The model with its parameters as initializers, and feeds for the rest; None if these are no arrays."""
    model, values = onnx.ModelProto(), list(case.data_sets[0][0])
    model.CopyFrom(case.model)
    if any(not isinstance(value, np.ndarray | np.generic) or value.dtype == object for value in values):
        return None
    for entry in model.opset_import:
        entry.version = min(entry.version, MAX_OPSET) if entry.domain == "" else entry.version
    model.ir_version = min(model.ir_version, 10)
    feeds = dict(zip([value.name for value in model.graph.input], map(np.asarray, values), strict=True))
    for node in model.graph.node:
        for index in PARAMETERS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name in feeds:
                model.graph.initializer.append(onnx.numpy_helper.from_array(feeds.pop(name), name))
    for value in [value for value in model.graph.input if value.name not in feeds]:
        model.graph.input.remove(value)
    return model, feeds


def runs(ort_run, data, feeds):
    """The outputs, or None where ONNX Runtime has no kernel."""
    try:
        return list(ort_run(data, feeds).values())
    except Exception:
        return None


def check(got, want, name: str, atol: float = 1e-5) -> None:
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype, name
        half = a.dtype.itemsize == 2 and a.dtype.kind == "f"
        tolerance = {"rtol": 1e-2, "atol": 2e-3} if half else {"rtol": 1e-4, "atol": atol}
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), err_msg=name, **tolerance)


def compare(chosen, save, ort_run, then=lambda name, model, feeds, want: None) -> tuple[int, int]:
    same = refused = 0
    for case in chosen:
        ready = prepared(case)
        if ready is None or case.name in NOT_COMPARED:
            continue
        model, feeds = ready
        path = save(model)
        try:
            result = ingest(path, {name: value.shape for name, value in feeds.items()})
        except IngestError as error:
            assert "\n" not in str(error), case.name
            refused += 1
            continue
        want = runs(ort_run, path, feeds)
        data = ir.to_proto(result).SerializeToString()
        if want is None:  # no kernel for the original: the standard's own numbers are the oracle
            got = runs(ort_run, data, feeds)
            if got is not None:
                check(got, case.data_sets[0][1], case.name, atol=1e-4)  # some are printed with four digits
        else:
            check(ort_run(data, feeds).values(), want, case.name)
            then(case.name, result, feeds, want)
        same += 1
    return same, refused


def test_a_sixth_of_the_examples(save, ort_run):
    same, refused = compare(cases()[::6], save, ort_run)
    assert same > 200 and refused > 30


@pytest.mark.slow
def test_all_examples_through_tvm(save, ort_run):
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    count = 0

    def through_tvm(name, model, feeds, want):
        nonlocal count
        if "_expanded" in name or "attention" in name or any(n.op_type in OWN for n in model.graph):
            return  # many of the same kind; recurrent operators are the compiler's
        executable = tvm.compile(from_onnx(ir.to_proto(model)), target="llvm")
        arguments = [tvm.runtime.tensor(np.array(feeds[v.name], order="C")) for v in model.graph.inputs]
        got = relax.VirtualMachine(executable, tvm.cpu())["main"](*arguments)
        check([got.numpy()] if hasattr(got, "numpy") else [g.numpy() for g in got], want, name)
        count += 1

    same, refused = compare(cases(), save, ort_run, through_tvm)
    assert same > 1200 and refused > 300 and count > 500
