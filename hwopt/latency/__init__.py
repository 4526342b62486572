"""What a network costs on a device at other widths and precisions: measured, or estimated and said so."""
