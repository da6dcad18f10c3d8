"""CUDA C, as TVM and our own kernels emit it, to C++ that `cuda.h` makes compile."""

import re

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\((\d+)[^)]*\) )?(\w+)\([^)]*\)\s*\{')
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:(?:__align__|alignas)\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];")
_STATIC = re.compile(r"__shared__\s+(?:(?:__align__|alignas)\((\d+)\)\s+)?([\w ]+?)\s+(\w+)\[(\d+)\];")
_HEADER = re.compile(r"^\s*#include <(?:cuda|mma|math_constants)\w*\.h>\s*$", re.MULTILINE)
_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:\b(?:volatile|__volatile__)\s*)?\(")
_OPERAND = re.compile(r'"[=+]?\w"\s*\(((?:[^()]|\([^()]*\))*)\)')
_PREDICATED = re.compile(r"\{.*?setp\.ne\.b32 \w+, (%\d+), 0;\s*@\w+ (.*?;)\s*\}", re.DOTALL)


def translate(source: str) -> str:
    """C++ with the meaning of ``source``, ending in the table of its kernels.

    Raises ValueError where an ``asm`` statement is no single PTX instruction, and where two kernels declare
    dynamic shared memory under one name with two types.
    """
    source = _HEADER.sub("", source)
    declared = {name: kind for kind, name in _DYNAMIC.findall(source)}
    for kind, name in _DYNAMIC.findall(source):
        if declared[name] != kind:
            raise ValueError(f"{name}: declared as {kind} and as {declared[name]}, which nvcc does not take")
    source = _DYNAMIC.sub(r"EMU_DYNAMIC_SHARED(\1, \2);", source)
    source = _STATIC.sub(lambda m: f"EMU_SHARED({m[2]}, {m[3]}, {m[4]}, {m[1] or 16});", source)
    kernels = [(m[2], m[1] or 1024) for m in _KERNEL.finditer(source)]
    rows = "".join(f"    EMU_KERNEL({name}, {threads}),\n" for name, threads in kernels)
    table = f"static const emu_kernel emu_table[] = {{\n{rows}    {{}}}};\n"
    return (
        f'#include "cuda.h"\n#line 1 "generated.cu"\n{_without_asm(source)}\n'
        f"{table}const emu_kernel* emu_kernels(void) {{ return emu_table; }}\n"
    )


def _without_asm(source: str) -> str:
    done, at = [], 0
    while statement := _ASM.search(source, at):
        end = _closing(source, statement.end())
        done += [source[at : statement.start()], _call(source[statement.end() : end])]
        at = end + 1
    return "".join(done) + source[at:]


def _closing(source: str, at: int) -> int:
    """Where the parenthesis closes that is open at ``at``; those in strings do not count."""
    depth, quoted = 1, False
    while depth:
        c = source[at]
        if c == '"':
            quoted = not quoted
        elif not quoted:
            depth += (c == "(") - (c == ")")
        at += 1
    return at - 1


def _call(asm: str) -> str:
    """``"add.f32 %0, %1;" : "=f"(d) : "f"(a)`` as ``ptx_add_f32(d, a)``, guarded where it is predicated."""
    strings = re.compile(r'\s*"([^"]*)"')
    template, at = "", 0
    while part := strings.match(asm, at):
        template, at = template + part[1], part.end()
    operands = [m[1] for m in _OPERAND.finditer(asm, at)]
    guard = ""
    if predicated := _PREDICATED.fullmatch(template.strip()):
        guard, template = f"if ({_fill(predicated[1], operands)}) ", predicated[2]
    instruction = re.fullmatch(r"\s*([\w.:]+)\s*([^;]*);\s*", template)
    if not instruction:
        raise ValueError(f"required one PTX instruction, found {template!r}; give it a meaning in ptx.h")
    arguments = [a.strip() for a in re.sub(r"[{}\[\]]", "", instruction[2]).split(",") if a.strip()]
    name = re.sub(r"\W", "_", instruction[1])
    return f"{guard}ptx_{name}({', '.join(_fill(a, operands) for a in arguments)})"


def _fill(argument: str, operands: list[str]) -> str:
    return re.sub(r"%(\d+)", lambda m: operands[int(m[1])], argument)
