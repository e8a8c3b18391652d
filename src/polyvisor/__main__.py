"""``python -m polyvisor``."""

from polyvisor.cli.main import main

main()
