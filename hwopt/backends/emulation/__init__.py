"""The arithmetic of an FPGA design, emulated bit by bit."""
