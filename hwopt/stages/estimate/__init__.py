"""Analytic cost of an FPGA design."""
