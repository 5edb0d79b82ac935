"""The benches of the control plane: cocotb tests, one module per block."""
