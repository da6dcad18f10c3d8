"""What torch does with whole networks: as they are, and compiled, replayed as a CUDA graph."""

import networks
import torch
from bare_networks import timed

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def seconds(entry: dict) -> dict[str, float]:
    """Seconds of the network of ``entry`` with all its weights, by name."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = entry["precision"] == "tf32"
    made = networks.build(entry["network"], entry["shape"])
    with torch.device("cuda"), torch.no_grad():  # for what a module makes while it runs
        module = made.module.cuda().to(_DTYPES[entry["precision"]]).eval()
        inputs = [x.cuda() for x in made.inputs.values()]
        inputs = [x.to(_DTYPES[entry["precision"]]) if x.is_floating_point() else x for x in inputs]

        def run(call):
            call(*inputs)
            torch.cuda.synchronize()

        compiled = torch.compile(module, mode="reduce-overhead")
        return {"torch": timed(lambda: run(module)), "torch_compile": timed(lambda: run(compiled))}
