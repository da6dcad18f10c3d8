"""Kernels of ours for GPUs, one by one, without a GPU and with one.

catalogue  which kernels, at which sizes
static     what nvcc makes of them: registers, spills, occupancy, instructions -> docs/cuda-kernels.md
bundle     every tile for every size, as machine code, for a machine that has a GPU and little else; there run
           bare: driver launches them, problems says what they compute, peers what torch needs for it
"""
