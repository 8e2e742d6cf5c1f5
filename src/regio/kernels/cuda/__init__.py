"""CUDA kernels, in Triton, of the operations in `regio.kernels`; imported at their first call on a GPU."""
