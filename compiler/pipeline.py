"""The road of a model, whole: every stage of a compilation, in order."""

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx_ir as ir
import tvm

import sparsec
from sparsec import passes
from sparsec.compiler import check, emulator, native, package, reference, sample
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.choices import choose
from sparsec.compiler.dump import Dump
from sparsec.compiler.ingest import SOURCE_DIMS, ingest
from sparsec.compiler.objects import build_levels
from sparsec.compiler.packings import import_model, make_packings
from sparsec.compiler.plan import Port
from sparsec.compiler.request import CompileRequest, cpu_levels, runnable
from sparsec.compiler.states import resolve
from sparsec.compiler.tuning.tiles import tuned, with_tiles
from sparsec.runtime.cpu import LEVEL_FEATURES
from sparsec.runtime.manifest import WEIGHTS
from sparsec.schedules.target import LEVELS


def compile_model(request: CompileRequest, *, log: Callable[[str], None] = lambda line: None) -> dict:
    """Compile, check and publish one model; returns the report that the command line prints.

    ``log`` gets one line per stage and per thing that a user should know.  Raises SparsecError or
    PassError; then nothing was published, and what was at ``request.out`` is unchanged.
    """
    stages = _Stages(log)
    dump = Dump(request.dump_dir)
    levels = cpu_levels(request.target)
    pipeline = passes.parse_pipeline(request.passes)

    with stages("read the model"):
        model = ingest(request.model, request.shapes, request.dims, log=log)
        inputs, outputs = ports(model.graph.inputs), ports(model.graph.outputs)
        states = resolve(request.states, inputs, outputs)
        source_sha256 = hashlib.sha256(Path(request.model).read_bytes()).hexdigest()
        dump.onnx("ingested", model)
    with stages("find and insert sparsity"):
        plain = serialised(model) if pipeline and request.verify else None
        findings = passes.run_pipeline(model, pipeline)
        dump.onnx("passes", model)
        changed = serialised(model) if pipeline else None
        feeds = (
            reference.calibration_inputs(request.calib, inputs)
            if request.calib
            else reference.random_inputs(model, inputs)
        )
    with stages("lay out channels-last"):
        channels_last(model)
        dump.onnx("channels_last", model)
    with stages("choose kernels"):
        choices = choose(model, request, levels)
        findings += choices.findings
    with stages("lower to kernels"):
        imported = import_model(model, choices.kernels, levels)
        layers = next(iter(imported.values()))[2]
        del model  # from here on the weights are in the modules, and soon in the plans alone
        packings = make_packings(imported, inputs, outputs, states, dump)
    plans = {level: packing.plan for packing in packings for level in packing.levels}
    kernels = {level: packing.kernels for packing in packings for level in packing.levels}
    with stages(f"build {len(packings[0].kernels.functions)} kernels for {', '.join(levels)}"):
        tiles = {
            level: found for p in packings for level, found in tuned(p.kernels, p.levels, choices).items()
        }
        built = build_levels({LEVELS[v]: with_tiles(kernels[v], tiles.get(v, {})) for v in levels})
        objects = dict(zip(levels, built, strict=True))

    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        plan = max(plans.values(), key=lambda p: p.arena_size)  # all else is the same
        members = {WEIGHTS: plan.weights}
        with stages("link"):
            for level, (made, code) in objects.items():
                library = Path(folder) / f"{level}.so"
                native.link(plans[level], [code], made.workspace_size, library, level)
                members[package.library_member(level)] = library.read_bytes()
                if request.exportable:
                    library = native.archive(plans[level], [code], made.workspace_size, level)
                    members[package.archive_member(level)] = library
        manifest = package.base_manifest(
            plan,
            sparsec_version=sparsec.__version__,
            tvm_version=tvm.__version__,
            source_sha256=source_sha256,
            libraries={level: LEVEL_FEATURES[level] for level in levels},
            packings=[packing.levels for packing in packings],
            passes=passes.print_pipeline(pipeline),
            layers=layers,
            choices=choices.kernels,
            tiles=tiles,
        )
        if request.verify:
            with stages("check against ONNX Runtime"):
                if plain:  # inserted passes change the model, so reading it is checked by itself
                    check.same_model(plain, request.model, feeds)
                trials = package.write_trials(Path(folder), manifest, members, runnable(levels))
                runs = {level: partial(check.run_artifact, trial) for level, trial in trials.items()}
                runs |= emulator.runs(plans, objects, Path(folder))
                source = changed or request.model
                manifest["receipt"] = check.receipt(runs, source, feeds, bool(request.calib))
                manifest["receipt"] |= emulator.remarks(levels, runs)
        if request.exportable:
            with stages("keep a sample"):
                members[sample.MEMBER] = sample.make(changed or request.model, feeds, plan)
        with stages("publish"):
            package.write_artifact(request.out, manifest, members)

    return {
        "out": request.out,
        "size": Path(request.out).stat().st_size,
        "seconds": round(sum(seconds for _, seconds in stages.done), 3),
        "stages": stages.done,
        "target": request.target,
        "levels": list(levels),
        "layers": layers,
        "findings": [finding.to_json() for finding in findings],
        "choices": choices.kernels,
        "tiles": tiles,
        "receipt": manifest["receipt"],
        "packings": [list(packing.levels) for packing in packings],
        "kernels": dict(Counter(built[0][0].rules.values())),
        "steps": len(plan.steps),
        "arena_bytes": plan.arena_size,
        "weights_bytes": len(plan.weights),
    }


def ports(values) -> tuple[Port, ...]:
    """Inputs or outputs with the dims that the source model declares for them."""
    result = []
    for value in values:
        shape = tuple(int(d) for d in value.shape)
        named = json.loads(value.metadata_props.get(SOURCE_DIMS, "null")) or shape
        dims = tuple(size if dim is None else dim for dim, size in zip(named, shape, strict=True))
        result.append(Port(value.name, str(value.dtype.numpy()), shape, dims))
    return tuple(result)


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


class _Stages:
    """Times the stages, and says each one as it begins."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str):
        self.log(name)
        start = time.perf_counter()
        yield
        self.done.append((name, round(time.perf_counter() - start, 3)))
