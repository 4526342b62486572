"""``python -m hwopt``, for torchrun and for places without the script."""

from hwopt.cli.main import main

main()
