"""The walk over a model: each layer on the pruned inputs, towards the dense outputs; what it reports."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.passes import PassError, run_pipeline
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Unstructured
from sparsec.passes.prune.insert import insert
from sparsec.passes.prune.places import find_place
from sparsec.passes.prune.rows import input_rows, output_rows
from sparsec.passes.prune.sweep import sweep
from sparsec.passes.prune.walk import Settings

RNG = np.random.default_rng(0)
SMALL = Choice(min_size=0)


def tensor(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def build(model_of, body, inputs, outputs, **weights):
    """A model with initializers."""
    constants = ", ".join(f"float[{','.join(map(str, a.shape))}] {name}" for name, a in weights.items())
    model = model_of(body, inputs + (", " + constants if constants else ""), outputs)
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
    return model


@pytest.fixture
def observe(run_all):
    """``observe(model, feeds)``: what a walk asks for, by running the whole model anew each time."""

    def make(model, feeds):
        return lambda names: (run_all(model, feed, names) for feed in feeds)

    return make


@pytest.fixture
def run_all():
    import onnxruntime

    def run(model, feed, names):
        clone = model.clone()
        given = {value.name for value in clone.graph.inputs}
        wanted = [name for name in names if name not in given]
        values = {v.name: v for node in clone.graph for v in node.outputs}
        clone.graph.outputs[:] = [values[name] for name in wanted]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(ir.to_proto(clone).SerializeToString(), options)
        found = dict(zip(wanted, session.run(None, feed), strict=True)) if wanted else {}
        return found | {name: feed[name] for name in names if name in given}

    return run


@pytest.fixture
def pruned(observe):
    """``pruned(model, feeds, pattern, ...)`` -> (model, findings, reports), the given model untouched."""

    def make(model, feeds, pattern, settings=None, choice=SMALL, **options):
        model = model.clone()
        dense = observe(model.clone(), feeds)
        findings, reports = insert(
            model, pattern, dense, observe(model, feeds), settings or Settings("search"), choice, **options
        )
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        return model, findings, reports

    return make


def mlp(model_of):
    return build(
        model_of,
        "h = MatMul(x, A)  b = Add(h, c)  r = Relu(b)  y = Gemm<transB=1>(r, B)",
        "float[40,32] x",
        "float[40,16] y",
        A=tensor(32, 48),
        c=tensor(48),
        B=tensor(16, 48),
    )


def test_the_second_layer_is_fitted_to_the_inputs_that_it_gets(model_of, pruned, run_all):
    model, feeds = mlp(model_of), [{"x": tensor(40, 32)} for _ in range(5)]
    sparse, findings, reports = pruned(model, feeds, NM(2, 4, 16), Settings("wanda", damping=1e-9))
    assert [f.outcome for f in findings] == ["applied"] * 2 and len(reports) == 2
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    values = {k: v.const_value.numpy().astype(np.float64) for k, v in model.graph.initializers.items()}
    new = {k: v.const_value.numpy().astype(np.float64) for k, v in sparse.graph.initializers.items()}
    assert set(new) == {"A_pruned", "c_pruned", "B_pruned", "B_bias_pruned"}
    hidden = x @ values["A"] + values["c"]
    wanted = np.maximum(hidden, 0) @ values["B"].T
    got = np.maximum(x @ new["A_pruned"] + new["c_pruned"], 0)
    for inputs, goal, weight, bias in (
        (x, hidden, new["A_pruned"].T, new["c_pruned"]),
        (got, wanted, new["B_pruned"], new["B_bias_pruned"]),
    ):
        for row in range(len(weight)):
            support = np.flatnonzero(weight[row])
            with_one = np.column_stack([inputs[:, support], np.ones(len(x))])
            solution, *_ = np.linalg.lstsq(with_one, goal[:, row], rcond=None)
            np.testing.assert_allclose(weight[row, support], solution[:-1], rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(bias[row], solution[-1], rtol=2e-3, atol=1e-3)
    final = np.square(got @ new["B_pruned"].T + new["B_bias_pruned"] - wanted).sum()
    relative = final / np.square(wanted - wanted.mean(0)).sum()
    assert reports[1]["error_after"] == pytest.approx(relative, rel=1e-3)
    assert reports[1]["error_after"] < reports[1]["error_before"]
    assert "2:4x16 by wanda: keeps 50.0 % of the weights" in findings[0].reason


def test_what_is_pruned_is_recognised(model_of, pruned):
    sparse, findings, _ = pruned(mlp(model_of), [{"x": tensor(40, 32)}], NM(2, 4, 16))
    assert [(f.before, f.after) for f in findings] == [
        ("MatMul", "ai.sparsec.NMMatMul"),
        ("Gemm", "ai.sparsec.NMGemm"),
    ]
    for node in sparse.graph:
        if node.domain:
            node.op_type, node.domain = node.op_type[2:], ""
            for name in ("n", "m", "block"):
                node.attributes.pop(name)
    found = [f for f in run_pipeline(sparse) if f.applied]
    assert ["2:4x16: keeps 50.0 %" in f.reason for f in found] == [True, True]


def test_unstructured_keeps_the_operator(model_of, pruned):
    sparse, findings, _ = pruned(mlp(model_of), [{"x": tensor(40, 32)}], Unstructured(0.75))
    assert [node.op_type for node in sparse.graph] == ["MatMul", "Add", "Relu", "Gemm"]
    assert np.count_nonzero(sparse.graph.initializers["A_pruned"].const_value.numpy()) == 32 * 48 // 4
    assert [f.after for f in findings] == ["MatMul", "Gemm"]


def residual(model_of):
    return build(
        model_of,
        "a = Gemm(x, A, c)  r = Relu(a)  b = Gemm(r, B)  s = Add(x, b)  d = Gemm(s, D)  y = Add(d, s)",
        "float[60,32] x",
        "float[60,32] y",
        A=tensor(32, 48),
        c=tensor(48),
        B=tensor(48, 32),
        D=tensor(32, 32),
    )


def test_the_residual_sum_takes_back_what_was_lost_before(model_of, pruned, run_all):
    model, feeds = residual(model_of), [{"x": tensor(60, 32)} for _ in range(4)]
    sparse, _, reports = pruned(model, feeds, NM(2, 4), Settings("magnitude", damping=1e-9))
    errors = []
    for feed in feeds:
        dense, got = run_all(model, feed, ["y"]), run_all(sparse, feed, ["y"])
        errors.append(got["y"].astype(np.float64) - dense["y"])
    # The sum's own residual is what the report of the last layer counts.
    goal = np.concatenate([run_all(model, feed, ["y"])["y"] for feed in feeds])
    branch = np.concatenate([run_all(sparse, feed, ["s"])["s"] for feed in feeds]).astype(np.float64)
    scale = np.square((goal - branch) - (goal - branch).mean(0)).sum()
    assert reports[-1]["error_after"] == pytest.approx(
        np.square(np.concatenate(errors)).sum() / scale, rel=1e-3
    )
    assert np.abs(np.concatenate(errors).mean(0)).max() < 1e-3  # the bias takes back the mean


def test_rows_of_padding_do_not_count(model_of, pruned):
    body = "h = MatMul(x, A)  y = Add(h, c)"
    weights = {"A": tensor(32, 16), "c": tensor(16)}
    x = tensor(4, 10, 32)
    mask = (np.arange(10) < np.array([[3], [10], [7], [1]])).astype(np.float32)
    model = build(model_of, body, "float[4,10,32] x, float[4,10] mask", "float[4,10,16] y", **weights)
    masked, *_ = pruned(model, [{"x": x, "mask": mask}], NM(2, 4, 4), Settings("obs", mask="mask"))
    plain = build(model_of, body, "float[21,32] x", "float[21,16] y", **weights)
    packed, *_ = pruned(plain, [{"x": x[mask != 0]}], NM(2, 4, 4), Settings("obs"))
    for name in ("A_pruned", "c_pruned"):
        np.testing.assert_allclose(
            *(m.graph.initializers[name].const_value.numpy() for m in (masked, packed)), rtol=1e-4, atol=1e-5
        )


def test_a_weight_that_two_layers_read_is_fitted_to_both(model_of, pruned):
    body = "a = MatMul(x, A)  b = MatMul(z, A)  y = Add(a, b)"
    model = build(model_of, body, "float[50,16] x, float[50,16] z", "float[50,8] y", A=tensor(16, 8))
    feed = {"x": tensor(50, 16), "z": 3 * tensor(50, 16)}
    sparse, findings, _ = pruned(model, [feed], NM(2, 4, 4), Settings("wanda", damping=1e-9))
    assert [f.outcome for f in findings] == ["applied"] * 2
    assert list(sparse.graph.initializers) == ["A_pruned"]
    weight = sparse.graph.initializers["A_pruned"].const_value.numpy()
    rows, dense = np.concatenate([feed["x"], feed["z"]]), model.graph.initializers["A"].const_value.numpy()
    for column in range(8):
        support = np.flatnonzero(weight[:, column])
        solution, *_ = np.linalg.lstsq(rows[:, support], rows @ dense[:, column], rcond=None)
        np.testing.assert_allclose(weight[support, column], solution, rtol=1e-3, atol=1e-4)


CONVS = [
    ("pads=[1,1,1,1]", (8, 8, 3, 3), 1),
    ("strides=[2,1], pads=[0,1,2,1]", (8, 8, 3, 2), 1),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (8, 8, 2, 3), 1),
    ('auto_pad="SAME_LOWER"', (8, 8, 2, 2), 1),
    ('auto_pad="VALID", dilations=[2,1]', (8, 8, 3, 3), 1),
    ("group=2, pads=[1,1,1,1]", (8, 4, 3, 3), 2),
]


@pytest.mark.parametrize("attributes, shape, groups", CONVS)
def test_the_rows_of_a_convolution_times_its_weight_are_its_output(
    model_of, run_all, attributes, shape, groups
):
    model = build(
        model_of, f"y = Conv<{attributes}>(x, W)", "float[2,8,9,7] x", "float[2,8,H,V] y", W=tensor(*shape)
    )
    feed = {"x": tensor(2, 8, 9, 7)}
    (layer,) = find_layers(model)
    rows = input_rows(layer, feed["x"])
    weight = layer.weight.reshape(groups, 8 // groups, -1)
    expected = output_rows(layer, run_all(model, feed, ["y"])["y"])
    got = np.concatenate([x @ w.T for x, w in zip(rows, weight, strict=True)], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


TRANSPOSED = [
    ("strides = [2, 3]", (8, 6, 3, 2), 1),
    ("strides = [2, 1], pads = [1, 0, 2, 1], output_padding = [1, 0]", (8, 6, 3, 3), 1),
    ("dilations = [2, 1], pads = [3, 2, 0, 1], group = 2", (8, 3, 2, 3), 2),
]


@pytest.mark.parametrize("attributes, shape, groups", TRANSPOSED)
def test_rows_of_a_transposed_convolution(model_of, run_all, attributes, shape, groups):
    text = f"y = ConvTranspose<{attributes}>(x, W)"
    model = build(model_of, text, "float[2,8,5,4] x", "float[2,6,H,V] y", W=tensor(*shape))
    (layer,) = find_layers(model)
    feed = {"x": tensor(2, 8, 5, 4)}
    weight = layer.weight.reshape(groups, 6 // groups, -1)
    got = [x @ w.T for x, w in zip(input_rows(layer, feed["x"]), weight, strict=True)]
    expected = output_rows(layer, run_all(model, feed, ["y"])["y"])
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.stored(layer.weight), layer.array)


@pytest.mark.parametrize("attributes, shape, groups", CONVS)
def test_a_convolution_keeps_to_the_pattern_and_near_the_output(
    model_of, pruned, run_all, attributes, shape, groups
):
    model = build(
        model_of,
        f"h = Conv<{attributes}>(x, W, b)  y = Relu(h)",
        "float[2,8,9,7] x",
        "float[2,8,H,V] y",
        W=tensor(*shape),
        b=tensor(8),
    )
    feed = {"x": tensor(2, 8, 9, 7)}
    sparse, (finding,), (report,) = pruned(model, [feed], NM(2, 4, 4))
    assert finding.after == "ai.sparsec.NMConv"
    dense, got = run_all(model, feed, ["h"])["h"], run_all(sparse, feed, ["h"])["h"]
    dense, got = (np.moveaxis(a.astype(np.float64), 1, 0).reshape(8, -1) for a in (dense, got))
    errors = [
        np.square(g - d).sum() / np.square(d - d.mean(1, keepdims=True)).sum()
        for g, d in zip(np.split(got, groups), np.split(dense, groups), strict=True)
    ]
    # The report counts the damping as well.
    assert np.mean(errors) < report["error_after"] < report["error_before"]


class Box(dict):
    """A memory that also counts what was asked."""

    def recall(self, name):
        return self.get(name)

    def remember(self, name, weight, bias, reports):
        self[name] = (weight, bias, reports)


def test_a_walk_that_was_interrupted_goes_on_where_it_was(model_of, pruned):
    model, feeds, box = residual(model_of), [{"x": tensor(60, 32)}], Box()
    whole, findings, reports = pruned(model, feeds, NM(2, 4, 4), memory=box)
    assert len(box) == 3
    del box[[node.name for node in model.graph][-2]]
    again, findings2, reports2 = pruned(model, feeds, NM(2, 4, 4), memory=box)
    assert (findings2, reports2) == (findings, reports)
    for name, value in whole.graph.initializers.items():
        np.testing.assert_array_equal(
            again.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_progress_names_each_layer_and_the_time_left(model_of, pruned):
    said = []
    pruned(mlp(model_of), [{"x": tensor(40, 32)}], NM(2, 4), log=said.append)
    assert [line.split(":")[0] for line in said] == ["1/2 n0_MatMul", "2/2 n3_Gemm"]
    assert said[-1].endswith("0 min 0 s left")


def test_layers_that_calibration_cannot_serve_say_why(model_of, pruned):
    model = build(
        model_of,
        "a = Gemm<alpha=2.0>(x, A)  b = Gemm(x, A, v)  c = MatMul(x, A)  s = Add(a, b)  y = Add(s, c)",
        "float[6,32] x, float[16] v",
        "float[6,16] y",
        A=tensor(32, 16),
    )
    feed = {"x": tensor(6, 32), "v": tensor(16)}
    _, findings, _ = pruned(model, [feed], NM(2, 4, 4), choice=Choice(min_size=0, skip="*MatMul"))
    assert [f.reason for f in findings] == [
        "calibration takes a Gemm with alpha = beta = 1 only",
        "calibration takes a bias that is a constant of one number per output channel only",
        "named by skip=*MatMul",
    ]


def test_a_misspelt_glob_is_an_error(model_of, pruned):
    with pytest.raises(PassError, match="nm: layers=dense must match a layer with a constant weight"):
        pruned(mlp(model_of), [{"x": tensor(40, 32)}], NM(2, 4), choice=Choice(layers="dense"))


def test_patterns_may_differ_from_layer_to_layer(model_of, pruned):
    def pattern(layer):
        return NM(1, 4, 4) if layer.standard == "Gemm" else NM(2, 4, 16)

    _, findings, reports = pruned(mlp(model_of), [{"x": tensor(40, 32)}], pattern)
    assert [r["pattern"] for r in reports] == ["2:4x16", "1:4x4"]


def weights_of(model):
    return {layer.node.outputs[0].name: layer.weight[:, 0].astype(np.float64) for layer in find_layers(model)}


def behind_relu(run_all, model, sparse, feeds):
    """The squared error behind the Relu, and before it."""
    found = [run_all(m, feed, ["r", "b"]) for feed in feeds for m in (model, sparse)]
    return [
        sum(
            np.square(a[name].astype(np.float64) - b[name]).sum()
            for a, b in zip(found[::2], found[1::2], strict=True)
        )
        for name in ("r", "b")
    ]


def test_sweeps_bring_down_the_error_behind_the_activation(model_of, pruned, observe, run_all):
    model, feeds = mlp(model_of), [{"x": tensor(40, 32)} for _ in range(8)]
    sparse, *_ = pruned(model, feeds, NM(2, 4), Settings("wanda"))
    masks = {name: weight != 0 for name, weight in weights_of(sparse).items()}
    errors = [behind_relu(run_all, model, sparse, feeds)]
    for _ in range(3):
        found = sweep(
            sparse,
            list(find_layers(sparse)),
            observe(model, feeds),
            observe(sparse, feeds),
            Settings("wanda"),
        )
        errors.append(behind_relu(run_all, model, sparse, feeds))
        for name, weight in weights_of(sparse).items():
            np.testing.assert_array_equal(weight != 0, masks[name])
    behind, before = zip(*errors, strict=True)
    assert sorted(behind, reverse=True) == list(behind) and behind[-1] < 0.97 * behind[0]
    assert before[-1] > before[0]  # what the Relu does not let through is free
    assert {value.name for value, _ in found.values()} <= set(sparse.graph.initializers)


def test_a_sweep_refits_layers_that_were_too_small_to_prune(model_of, pruned, observe, run_all):
    """The last layer, dense, against least squares on the inputs that it gets; and a skipped one."""
    model, feeds = mlp(model_of), [{"x": tensor(40, 32)} for _ in range(5)]
    settings = Settings("magnitude", damping=1e-9)
    sparse, *_ = pruned(model, feeds, NM(2, 4), settings, Choice(min_size=1000))
    first, last = find_layers(sparse)
    assert (first.before, last.before) == ("ai.sparsec.NMMatMul", "Gemm")
    sweep(sparse, [first, last], observe(model, feeds), observe(sparse, feeds), settings)
    inputs = np.concatenate([run_all(sparse, feed, ["r"])["r"] for feed in feeds]).astype(np.float64)
    goal = np.concatenate([run_all(model, feed, ["y"])["y"] for feed in feeds])
    with_one = np.column_stack([inputs, np.ones(len(inputs))])
    solution, *_ = np.linalg.lstsq(with_one, goal, rcond=None)
    np.testing.assert_allclose(weights_of(sparse)["y"].T, solution[:-1], rtol=2e-3, atol=1e-3)


def test_insert_sweeps_over_the_layers_that_are_named(model_of, pruned, observe):
    model, feeds = mlp(model_of), [{"x": tensor(40, 32)} for _ in range(3)]
    seen, said = [], []

    def sparse(names):  # the model in the making is known to nobody else: the dense values will do here
        seen.append(tuple(names))
        return observe(model, feeds)(names)

    again = [(observe(model, feeds), sparse)] * 2
    choice = Choice(layers="*MatMul", min_size=0)
    made, _, (report,) = pruned(model, feeds, NM(2, 4), choice=choice, again=again, log=said.append)
    assert seen == [("x",)] * 2  # the Gemm is not named: nobody asks for its input
    told = [line.split(":")[0] for line in said]
    assert told == ["1/1 n0_MatMul", "sweep 2", "1/1 n0_MatMul", "sweep 3", "1/1 n0_MatMul"]
    assert f"{100 * report['error_after']:.2f} %" in said[-1]
    np.testing.assert_array_equal(weights_of(made)["y"], weights_of(model)["y"])


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("Relu(s)", [-3.0, 0.0, -1.0, 2.0, 2.0]),
        ("Clip(s, low, high)", [-3.0, 0.0, -1.0, 1.5, 2.0]),
        ("Clip(s, , high)", [-1.0, -1.0, -1.0, 1.5, 2.0]),
        ("Tanh(s)", [-1.0, -1.0, -1.0, 2.0, 2.0]),
    ],
)
def test_an_activation_does_not_see_what_lies_beyond_its_bounds(model_of, tail, expected):
    limits = {"low": np.float32(0), "high": np.float32(1.5)}
    used = {name: value for name, value in limits.items() if name in tail}
    body = f"h = MatMul(x, A)  s = Add(h, c)  y = {tail}"
    model = build(
        model_of,
        body,
        "float[5,4] x",
        "float[5,1] y",
        A=tensor(4, 1),
        c=tensor(1),
        **{name: np.asarray(value) for name, value in used.items()},
    )
    (layer,) = find_layers(model)
    place = find_place(layer, set(model.graph.inputs))
    wanted, now = np.array([-1.0, -1, -1, 2, 2]), np.array([-3.0, 1, -1, 1, 2])
    np.testing.assert_array_equal(place.unseen(wanted, now), expected)
