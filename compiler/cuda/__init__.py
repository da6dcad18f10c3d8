"""Compiling for NVIDIA GPUs: kernels to CUDA C, a fat binary of it, and a library that launches them."""
