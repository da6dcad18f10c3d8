"""Which output feeds which input in the next run, as ``--state past=present`` says it.

Both sides are names, or patterns with one ``*`` that stands for the same text on both:
``past_*=present_*``.
"""

import re
from collections.abc import Mapping

from sparsec.compiler.errors import CompileError
from sparsec.compiler.plan import Port
from sparsec.passes.spec import suggest


def resolve(asked: Mapping[str, str], inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> dict[str, str]:
    """State input -> its output, in the order of the inputs.

    Raises CompileError for names that the model does not have, for an input or an output that is given
    twice, and for pairs whose shape or dtype differ.
    """
    by_name = {port.name: port for port in outputs}
    found: dict[str, str] = {}
    for past, present in asked.items():
        option = f"--state '{past}={present}'"
        if past.count("*") != present.count("*") or past.count("*") > 1:
            raise CompileError(f"{option}: write one * on both sides, or none")
        matches = [(port, match) for port in inputs if (match := _match(past, port.name))]
        if not matches:
            names = [port.name for port in inputs]
            raise CompileError(
                f"{option}: the model has no input '{past}'; its inputs: {', '.join(names)}."
                + suggest(past, names)
            )
        for port, match in matches:
            output = present.replace("*", match[1]) if "*" in present else present
            if output not in by_name:
                raise CompileError(
                    f"{option}: the model has no output '{output}'; its outputs: {', '.join(by_name)}."
                    + suggest(output, list(by_name))
                )
            if port.name in found or output in found.values():
                raise CompileError(f"{option}: '{port.name}' or '{output}' is already part of a state")
            _check(port, by_name[output])
            found[port.name] = output
    return {port.name: found[port.name] for port in inputs if port.name in found}


def _match(pattern: str, name: str) -> re.Match | None:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)


def _check(past: Port, present: Port) -> None:
    if (past.shape, past.dtype) != (present.shape, present.dtype):
        raise CompileError(
            f"input '{past.name}' is {past.dtype}{list(past.shape)} and output '{present.name}' is "
            f"{present.dtype}{list(present.shape)}: a state keeps shape and dtype from run to run; let the "
            f"model update a cache of fixed size, or pass '{past.name}' with each run, without --state"
        )
