"""A precision and a pattern for every layer of a model, under one budget, on the way to an artifact.

forms      what a layer may become, and which layers become it together
seconds    of each layer in each form, by its kernels on this machine
errors     of each layer in each form, at the model's outputs
trial      the model with forms chosen, for real: in ONNX, and compiled
survey     all of that for one model, and its frontier
allocate   the search along the frontier
told       what is said of the result
"""
