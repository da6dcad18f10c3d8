"""Machine code: what TVM asks of arguments is left out, what depends on data stays."""

import tvm

from sparsec.compiler.objects import build_library, object_file
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.layout import DENSE
from sparsec.schedules.lookup import checked_index
from sparsec.schedules.target import LEVELS


def test_only_checks_of_data_are_compiled():
    functions = {
        "gemm": Gemm((7,), 33, 17, DENSE).prim_func(),
        "look": checked_index((5,), "int64", (9,), "Gather 'g'"),
    }
    named = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    code = object_file(build_library(tvm.IRModule(named), LEVELS["v2"]).library)
    assert b"TypeError" not in code and b"ValueError" not in code
    assert b"IndexError" in code and b"Gather 'g'" in code
