"""What a network costs on an FPGA: cycles, resources, energy, and whether it fits."""
