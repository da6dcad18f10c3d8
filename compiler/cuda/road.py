"""The road of a model to GPUs: every stage, in order.  The first ones are those of every target."""

import gc
import tempfile
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import tvm

import sparsec
from sparsec import passes
from sparsec.compiler import check, native, package, precision, sample
from sparsec.compiler.cuda.choices import choose, half
from sparsec.compiler.cuda.kernels import build_kernels
from sparsec.compiler.cuda.link import HOSTS, arena_size, link
from sparsec.compiler.cuda.toolchain import toolchain
from sparsec.compiler.dump import Dump
from sparsec.compiler.errors import CompileError
from sparsec.compiler.front import Stages, read_model
from sparsec.compiler.lower import lower
from sparsec.compiler.objects import build_levels
from sparsec.compiler.plan import Plan
from sparsec.compiler.planner import Weights, make_plan
from sparsec.compiler.request import CompileRequest, gpu_names, native_level
from sparsec.compiler.states import resolve
from sparsec.compiler.to_relax import Importer
from sparsec.compiler.to_relax.attention import attentions
from sparsec.passes import weight_quant
from sparsec.runtime import cpu
from sparsec.runtime.errors import TargetError
from sparsec.runtime.manifest import KERNELS, WEIGHTS
from sparsec.schedules.cuda import Gpu
from sparsec.schedules.cuda.attention_kernel import why_not_narrow
from sparsec.schedules.target import LEVELS

NARROW_MAKERS = ("LayerNormalization",)
"""Operators that write 16 bits themselves; behind others rounding is a kernel of its own."""

SOURCE = "kernels.cu"
"""The member that holds the CUDA C, where it was asked for."""


def compile_one(request: CompileRequest, weights: Weights, *, stages: Stages, dump: Dump) -> package.Made:
    """As ``pipeline.compile_one``, for GPUs.

    No GPU is needed.  Where there is none, the plan is checked with CPU kernels in the place of the GPU's.
    """
    names = gpu_names(request.target)
    ptx = names[-1] if len(names) > 1 else None  # later GPUs translate it
    compiler = toolchain()  # before there is work to lose
    pipeline = passes.parse_pipeline(request.pipeline)

    source = read_model(request, pipeline, stages, dump)
    states = resolve(request.states, source.inputs, source.outputs)
    with stages("choose kernels"):
        weight_quant.restore(source.model)
        choices = choose(source.model, request)
        findings = source.findings + choices.findings
    with stages("lower to kernels"):
        attended, kept = attentions(source.model), half(request.precision)
        unfit = {x.products[1]: why_not_narrow(x.spec.narrowed(kept), Gpu(names)) for x in attended}
        readers, results = [x for x in attended if not unfit[x.products[1]]], [x.written for x in attended]
        narrow = precision.narrow(source.model, choices.kernels, NARROW_MAKERS, readers, results)
        findings += precision.told(source.model, choices.kernels, attended, narrow, kept, unfit)
        importer = Importer(source.model, choices.kernels, permute=None, narrow=narrow, half=kept)
        lowered = lower(importer.run())
        labels, layers = importer.labels, importer.layers
        del importer
        source.model = None  # from here on the weights are in the module, and soon in the plan alone
        dump.text("lowered", lowered)
        plan, functions = make_plan(lowered, source.inputs, source.outputs, labels, states, weights)
        dump.text("plan", "\n".join(map(str, plan.steps)))
        del lowered
        gc.collect()  # graphs are full of cycles
    with stages(f"generate {len(functions.functions)} functions for {', '.join(names)}"):
        kernels = build_kernels(functions, Gpu(names))
        dump.text("cuda", kernels.source)
        plain = sorted(name for name, rule in kernels.rules.items() if rule == "fallback")
        if plain:
            stages.log(f"a thread for each element, having no rule of their own: {', '.join(plain)}")
    with stages(f"compile by {compiler}"):
        binary = compiler.fat_binary(kernels.source, names, ptx)

    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        members = {WEIGHTS: plan.weights, KERNELS: binary}
        if request.keep_source:
            members[SOURCE] = kernels.source.encode()
        levels = hosts()
        if missing := set(HOSTS) - set(levels):
            others = ", ".join(sorted(HOSTS[level] for level in missing))
            stages.log(f"the file is not for {others} hosts; for these, too: python -m pip install ziglang")
        with stages(f"link for {', '.join(levels)}"):
            for level in levels:
                library = Path(folder) / f"{level}.so"
                link(plan, kernels, names, ptx, compiler.version, library, level)
                members[package.library_member(level)] = library.read_bytes()
        manifest = package.base_manifest(
            plan,
            sparsec_version=sparsec.__version__,
            tvm_version=tvm.__version__,
            source_sha256=source.sha256,
            libraries=dict.fromkeys(levels, ()),
            machines=HOSTS,
            passes=passes.print_pipeline(pipeline),
            layers=layers,
            choices=choices.kernels,
            precision=request.precision,
        )
        manifest["arena_size"] = arena_size(plan, kernels)
        manifest["gpu"] = {"architectures": list(names), "ptx": ptx or "", "cuda": _dotted(compiler.version)}
        if request.verify:
            with stages("check against ONNX Runtime"):
                source.require_read(request)
                runs, remarks = _runs(plan, functions, manifest, members, source.feeds, Path(folder))
                manifest["receipt"] = remarks | check.receipt(
                    runs, source.meant, source.feeds, bool(request.calib), request.precision
                )
        if request.exportable:
            with stages("keep a sample"):
                members[package.SAMPLE] = sample.make(source.meant, source.feeds, plan, request.precision)

    report = {
        "levels": list(names),
        "layers": layers,
        "findings": [finding.to_json() for finding in findings],
        "choices": choices.kernels,
        "precision": request.precision,
        "receipt": manifest["receipt"],
        "kernels": dict(Counter(kernels.rules.values())),
        "steps": len(plan.steps),
        "arena_bytes": manifest["arena_size"],
        "weights_bytes": len(plan.weights),
    }
    return package.Made(manifest, members, report)


def hosts() -> list[str]:
    """The levels of the hosts that this machine can link for: its own, and with ziglang the other one."""
    known = find_spec("ziglang")
    return [level for level, machine in HOSTS.items() if known or machine == cpu.architecture()]


def _runs(plan: Plan, functions: tvm.IRModule, manifest, members, feeds, folder: Path) -> tuple[dict, dict]:
    """What can be run here, on a GPU or with a CPU's kernels instead; and the receipt's words on it."""
    trial = folder / "trial.sparsec"
    package.write_artifact(trial, manifest, members)
    try:
        found = check.run_artifact(trial, feeds)
        return {"cuda": lambda _: found}, {}
    except TargetError as error:
        missing = str(error).removeprefix(f"{str(trial)!r}: ")
    remarks = {"not_run": {"cuda": missing}}
    try:
        level = native_level()
    except CompileError:
        return {}, remarks
    ((built, code),) = build_levels({LEVELS[level]: functions})
    library = folder / f"{level}.so"
    native.link(plan, [code], built.workspace_size, library, level)
    libraries = [{"member": package.library_member(level), "level": level, "features": []}]
    stand_in = {key: value for key, value in manifest.items() if key != "gpu"} | {
        "libraries": libraries,
        "target": {"system": "linux", "architecture": cpu.architecture()},
    }
    package.write_artifact(
        trial, stand_in, {WEIGHTS: plan.weights, package.library_member(level): library.read_bytes()}
    )
    return {level: partial(check.run_artifact, trial)}, remarks | {"stand_in": level}


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
