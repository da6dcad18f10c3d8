"""Kernels to CUDA C: schedule, lower, and read off how the host would launch them.

TVM would put the launches into host code that needs its runtime.  So the lowering is stopped where host and
device have been split and the host's calls can still be read: just before ``MakePackedAPI``.
"""

import re
from dataclasses import dataclass
from math import prod

import tvm
from tvm import s_tir, tirx

from sparsec.compiler.errors import CompileError, last_line
from sparsec.compiler.memory import aligned
from sparsec.schedules import RULE, tir
from sparsec.schedules.cuda import Gpu, faults, math, schedule

_CONFIG = {"tirx.disable_storage_rewrite": True}
"""As on CPUs: vectors of functions written as loops may overlap, so no buffer takes an input's place."""

_RTC = re.compile(r"(?<=#ifdef __CUDACC_RTC__\n).*?(?=#else\n)", re.DOTALL)
_RTC_TYPES = """\
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
"""
"""NVRTC has no headers; TVM would take those of other packages for no more than these names."""

_GRID = tuple(f"blockIdx.{axis}" for axis in "xyz")
_BLOCK = tuple(f"threadIdx.{axis}" for axis in "xyz")
_SHARED = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Argument:
    """A pointer that a kernel takes: parameter ``where`` of the function ("param"), byte ``where`` of the
    scratch memory that the functions share ("scratch"), or the word for failed assertions ("fault")."""

    kind: str
    where: int = 0


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the kernel, its pointers in its order, blocks, threads, dynamic shared bytes."""

    kernel: str
    args: tuple[Argument, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0


@dataclass(frozen=True)
class Kernels:
    """CUDA C of all kernels, and how each function of the plan launches them, in order.

    ``scratch_size``: the bytes that a function needs between its kernels.  ``faults``: what the fault word
    says, from 1 on.  ``rules``: the schedule rule that took each function.
    """

    source: str
    launches: dict[str, tuple[Launch, ...]]
    scratch_size: int
    faults: tuple[str, ...]
    rules: dict[str, str]


def build_kernels(functions: tvm.IRModule, gpu: Gpu) -> Kernels:
    """Schedule every PrimFunc of ``functions`` for ``gpu`` and generate its CUDA C.

    Raises CompileError, which names the function, for what has no kernel.
    """
    try:
        return _build(functions, gpu)
    except Exception as error:
        raise CompileError(
            f"{_culprit(functions, gpu)} has no kernel for GPUs: {last_line(error)}"
        ) from error


def _culprit(functions: tvm.IRModule, gpu: Gpu) -> str:
    """The first function that cannot be built by itself."""
    for gv, func in functions.functions.items():
        try:
            _build(tvm.IRModule({gv.name_hint: func}), gpu)
        except Exception:
            return f"'{gv.name_hint}'"
    return "the model"


def _build(functions: tvm.IRModule, gpu: Gpu) -> Kernels:
    math.install()
    texts: list[str] = []
    faulty = {
        gv.name_hint: faults.to_faults(func, texts)
        for gv, func in functions.functions.items()
        if faults.has_assertions(func)
    }
    whole = {gv.name_hint: func for gv, func in functions.functions.items()} | faulty
    scheduled = schedule(tvm.IRModule(whole), gpu)
    host, source = _lower(scheduled, gpu)
    launches, scratch = {}, 0
    for name in whole:
        found = _Launches(host[name], name in faulty)
        launches[name], scratch = tuple(found.launches), max(scratch, found.scratch)
    rules = {gv.name_hint: str(f.attrs[RULE]) for gv, f in scheduled.functions.items()}
    source = _RTC.sub(_RTC_TYPES, source, count=1).replace("#include <math_constants.h>\n", "")
    return Kernels(math.PRELUDE + source, launches, scratch, tuple(texts), rules)


def _lower(scheduled: tvm.IRModule, gpu: Gpu) -> tuple[dict[str, tirx.PrimFunc], str]:
    """The functions as the host has them, by name, and the source of the device's."""
    split: list[tvm.IRModule] = []

    @tvm.ir.instrument.pass_instrument
    class BeforePackedAPI:
        def run_before_pass(self, mod, info):
            if info.name == "tirx.MakePackedAPI":
                split.append(mod)

    target = gpu.tvm_target()
    lower, _, finalize_device = s_tir.pipeline.default_s_tir_pipeline()
    with tvm.transform.PassContext(opt_level=3, config=_CONFIG, instruments=[BeforePackedAPI()]):
        bound = tirx.transform.BindTarget(target.with_host(tvm.target.Target("llvm")))(scheduled)
        device = tirx.transform.Filter(lambda f: f.attrs["target"].kind.name == "cuda")(lower(bound))
        device = finalize_device()(device)
        exact = {name: f.with_body(math.keep_nan(f.body)) for name, f in device.functions.items()}
        built = tvm.get_global_func("target.build.cuda")(tvm.IRModule(exact), target)
    host = {gv.name_hint: func for gv, func in split[0].functions.items()}
    return host, built.inspect_source("cuda")


class _Launches:
    """The kernel calls of one host function, in the order in which it makes them."""

    def __init__(self, func: tirx.PrimFunc, faulty: bool):
        self.launches, self.scratch = [], 0
        self.places = {param: Argument("param", index) for index, param in enumerate(func.params)}
        if faulty:
            self.places[func.params[-1]] = Argument("fault")
        self.walk(func.body)

    def walk(self, stmt: tir.Stmt) -> None:
        match type(stmt).__name__:
            case "SeqStmt":
                for child in stmt.seq:
                    self.walk(child)
            case "AllocBuffer":
                self.places[stmt.buffer] = Argument("scratch", self.scratch)
                bits = tvm.DataType(tir.dtype_of(stmt.buffer)).bits
                self.scratch += aligned(prod(tir.shape_of(stmt.buffer)) * -(-bits // 8))
            case "DeclBuffer":
                self.places[stmt.buffer] = self.place(stmt.data)
            case "AttrStmt":
                self.walk(stmt.body)
            case "Evaluate":
                self.call(stmt.value)
            case kind:
                raise CompileError(f"the host would have to run a {kind}; this is a bug in sparsec")

    def call(self, call) -> None:
        if not isinstance(call, tvm.ir.Call):
            return  # a bare 0, as an empty function has it
        if call.op.name != "tirx.call_ffi_kernel":
            raise CompileError(f"the host would have to call {call.op.name}; this is a bug in sparsec")
        kernel, *args = call.args
        names = [str(p) for p in call.attrs.launch_params]
        pointers, extents = args[: len(args) - len(names)], args[len(args) - len(names) :]
        sizes = {axis: int(e.value) for axis, e in zip(names, extents, strict=True)}
        self.launches.append(
            Launch(
                kernel.value,
                tuple(self.place(p) for p in pointers),
                tuple(sizes.get(axis, 1) for axis in _GRID),
                tuple(sizes.get(axis, 1) for axis in _BLOCK),
                sizes.get(_SHARED, 0),
            )
        )

    def place(self, pointer) -> Argument:
        """What ``buffer.data`` of a host's buffer is."""
        return self.places[pointer.args[0]]
