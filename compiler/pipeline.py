"""The road of a model, whole: every stage of a compilation, in order."""

import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tvm

import sparsec
from sparsec import passes
from sparsec.compiler import check, emulator, native, package, precision, sample, variants
from sparsec.compiler.choices import choose
from sparsec.compiler.cuda import road
from sparsec.compiler.dump import Dump
from sparsec.compiler.front import Stages, read_model
from sparsec.compiler.objects import build_levels
from sparsec.compiler.packings import import_model, make_packings
from sparsec.compiler.planner import Weights
from sparsec.compiler.request import WEIGHT_PASSES, CompileRequest, cpu_levels, gpu_names, runnable
from sparsec.compiler.states import resolve
from sparsec.compiler.to_relax.attention import attentions
from sparsec.compiler.tuning.tiles import tuned, with_tiles
from sparsec.runtime.cpu import LEVEL_FEATURES
from sparsec.runtime.manifest import WEIGHTS
from sparsec.schedules.target import LEVELS


def compile_model(request: CompileRequest, *, log: Callable[[str], None] = lambda line: None) -> dict:
    """Compile, check and publish one model; returns the report that the command line prints.

    ``log`` gets one line per stage and per thing that a user should know.  Raises SparsecError or
    PassError; then nothing was published, and what was at ``request.out`` is unchanged.
    """
    stages, dump = Stages(log), Dump(request.dump_dir)
    compile_it = road.compile_one if gpu_names(request.target) else compile_one
    one = partial(compile_it, stages=stages, dump=dump)
    made = variants.make(request, one, log) if request.variants else one(request, Weights())
    with stages("publish"):
        package.write_artifact(request.out, made.manifest, made.members)
    return {
        "out": request.out,
        "size": Path(request.out).stat().st_size,
        "seconds": round(sum(seconds for _, seconds in stages.done), 3),
        "stages": stages.done,
        "target": request.target,
        **made.report,
    }


def compile_one(request: CompileRequest, weights: Weights, *, stages: Stages, dump: Dump) -> package.Made:
    """All that ``compile_model`` does for one network, but to publish it; its weights go into ``weights``."""
    levels = cpu_levels(request.target, request.precision)  # an unknown target is told first
    pipeline = passes.parse_pipeline(request.pipeline)

    source = read_model(request, pipeline, stages, dump)
    model, inputs, outputs, findings = source.model, source.inputs, source.outputs, source.findings
    request = source.request
    judged = precision.judged(model, request.floats)
    states = resolve(request.states, inputs, outputs)
    if request.settled:
        levels = cpu_levels(request.target, f"{request.precision},{judged}")
    elif request.precision == "fp32":
        levels = cpu_levels(request.target, judged)
    with stages("choose kernels"):
        findings += precision.assign(model, request.floats, levels, request.bfloat16)
        choices = choose(model, request, levels)
        findings += choices.findings
    with stages("lower to kernels"):
        attended = attentions(model)
        narrow = precision.narrow(model, choices.kernels, attended=attended)
        findings += precision.told(model, choices.kernels, attended, narrow)
        imported = import_model(model, choices.kernels, levels, narrow)
        layers = next(iter(imported.values()))[2]
        source.model = None
        del model  # from here on the weights are in the modules, and soon in the plans alone
        packings = make_packings(imported, inputs, outputs, states, dump, weights)
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
            source_sha256=source.sha256,
            libraries={level: LEVEL_FEATURES[level] for level in levels},
            packings=[packing.levels for packing in packings],
            passes=passes.print_pipeline(pipeline),
            layers=layers,
            choices=choices.kernels,
            tiles=tiles,
            precision=judged,
        )
        if request.verify:
            with stages("check against ONNX Runtime"):
                source.require_read(request)
                trials = package.write_trials(Path(folder), manifest, members, runnable(levels))
                runs = {level: partial(check.run_artifact, trial) for level, trial in trials.items()}
                runs |= emulator.runs(plans, objects, Path(folder))
                manifest["receipt"] = check.receipt(
                    runs,
                    source.meant,
                    source.feeds,
                    bool(request.calib),
                    judged,
                    source.plain if request.settled or request.floats in ("int8", *WEIGHT_PASSES) else None,
                )
                manifest["receipt"] |= emulator.remarks(levels, runs)
        if request.exportable:
            with stages("keep a sample"):
                members[package.SAMPLE] = sample.make(source.meant, source.feeds, plan, judged)

    report = {
        "levels": list(levels),
        "layers": layers,
        "findings": [finding.to_json() for finding in findings],
        "choices": choices.kernels,
        "tiles": tiles,
        "precision": judged,
        "receipt": manifest["receipt"],
        "plan": source.plan,
        "packings": [list(packing.levels) for packing in packings],
        "kernels": dict(Counter(built[0][0].rules.values())),
        "steps": len(plan.steps),
        "arena_bytes": plan.arena_size,
        "weights_bytes": len(plan.weights),
    }
    return package.Made(manifest, members, report)
