"""Post-training quantisation to 8 bits: int8 weights and uint8 activations, as a standard QDQ model.

grid        the numbers that integers stand for
ranges      which range of an activation they cover
migration   what moves from activations into weights
rounding    from real weights to integers
projection  a pattern and a grid as one set
groups      scales of weights that alone are quantised
weights     their integers, walk and all
qdq         QuantizeLinear and DequantizeLinear in the graph
walk        layer by layer, each on the inputs that the quantised model gives
insert      which layers, what is told of them, and the way back
"""

from sparsec.passes.quantize.ranges import RANGES
from sparsec.passes.quantize.rounding import ROUNDINGS
from sparsec.passes.quantize.walk import Settings

__all__ = ["RANGES", "ROUNDINGS", "Settings"]
