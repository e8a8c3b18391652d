"""``python -m benchmarks``."""

import signal
import sys

from .suite import main

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the machines on the way out
sys.exit(main())
