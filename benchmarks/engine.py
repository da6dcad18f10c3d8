"""One engine in a process of its own, driven over pipes: `python engine.py SPEC.json`.

The file stands alone, so that any interpreter that has the engine can run it.  The spec names the engine,
its model, thread count, cores, an npz of inputs and where to write the first outputs.  Standard output
carries one JSON line when the first run is done, then one for each line `SECONDS` that comes in: the seconds
of every call that fits.  What the engine itself prints goes to standard error.
"""

import time

START = time.perf_counter()  # before the imports: a cold start pays for them

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

# The working directory holds folders named as modules are; an engine must not import them.
sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd(), os.path.dirname(os.path.abspath(__file__)))]


def sparsec(spec, feeds):
    from sparsec.runtime import load

    model = load(spec["model"], threads=spec["threads"])
    return lambda: list(model(feeds).values()), model.manifest.get("precision", "f32")


def onnxruntime(spec, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = spec["threads"], 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(spec["model"], options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds), "f32"


def openvino(spec, feeds):
    """fp32 forced, or what OpenVINO takes by itself: bf16 where the CPU has it."""
    import openvino

    config = {"INFERENCE_NUM_THREADS": spec["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if spec["engine"] == "openvino_fp32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    model = core.read_model(spec["model"])
    model.reshape({port.any_name: feeds[port.any_name].shape for port in model.inputs})
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    wanted = {port.any_name: feeds[port.any_name] for port in compiled.inputs}

    def run():
        found = request.infer(wanted, share_inputs=True, share_outputs=True)
        return [found[port] for port in compiled.outputs]

    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return run, {"bf16": "bf16", "f16": "f16"}.get(precision, "f32")


def torch(spec, feeds):
    """Eager torch on the network that the ONNX file was exported from."""
    sys.path.append(spec["zoo"])
    import torch

    import zoo

    torch.set_num_threads(spec["threads"])
    network = zoo.build(spec["network"], **spec["shape"])
    inputs = [torch.from_numpy(feeds[name]) for name in network.inputs]

    def run():
        with torch.inference_mode():
            found = network.module(*inputs)
        return [t.numpy() for t in (found if isinstance(found, tuple | list) else [found])]

    return run, "f32"


def deepsparse(spec, feeds):
    from deepsparse import Engine

    batch = next(iter(feeds.values())).shape[0]
    engine = Engine(model=spec["model"], batch_size=batch, num_cores=spec["threads"])
    inputs = [feeds[name] for name in engine.input_names]
    return lambda: engine.run(inputs), "f32"


def iree(spec, feeds):
    """A module that `iree-compile` made; its inputs are those of the ONNX file, in order."""
    import iree.runtime as rt

    config = rt.Config("local-sync" if spec["threads"] == 1 else "local-task")
    context = rt.SystemContext(config=config)
    context.add_vm_module(rt.VmModule.mmap(context.instance, spec["model"]))
    (name,) = (key for key in context.modules if key != "hal")
    functions = [f for f in context.modules[name].vm_module.function_names if not f.endswith("$async")]
    call = context.modules[name][next(f for f in functions if not f.startswith("__"))]
    inputs = list(feeds.values())

    def run():
        found = call(*inputs)
        return [f.to_host() for f in (found if isinstance(found, tuple | list) else [found])]

    return run, "f32"


#: Engine -> (what opens it, the distribution whose version is told).
ENGINES = {
    "sparsec": (sparsec, "sparsec"),
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "openvino_fp32": (openvino, "openvino"),
    "openvino": (openvino, "openvino"),
    "torch": (torch, "torch"),
    "deepsparse": (deepsparse, "deepsparse"),
    "iree": (iree, "iree-base-runtime"),
}


def turn(run, seconds: float) -> list[float]:
    """Seconds of every call; the first, which finds the caches of another engine, does not count."""
    run()
    found, stop = [], time.perf_counter() + seconds
    while not found or (time.perf_counter() < stop and len(found) < 5000):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    os.sched_setaffinity(0, spec["cores"])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import numpy as np

    ours = time.perf_counter()
    with np.load(spec["feeds"]) as stored:
        feeds = {name: np.ascontiguousarray(stored[name]) for name in stored.files}
    ours -= time.perf_counter()  # reading the inputs is no part of a cold start
    open_engine, package = ENGINES[spec["engine"]]
    run, precision = open_engine(spec, feeds)
    outputs = run()
    cold = time.perf_counter() - START + ours
    np.savez(spec["outputs"], *[np.asarray(a) for a in outputs])

    from importlib.metadata import version

    with open("/proc/self/status") as status:
        (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    facts = {"version": version(package), "precision": precision, "cold_seconds": cold, "peak_bytes": peak}
    print(json.dumps(facts), file=replies)
    for line in sys.stdin:
        print(json.dumps(turn(run, float(line))), file=replies)


if __name__ == "__main__":
    main()
