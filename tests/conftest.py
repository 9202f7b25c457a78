"""Compiled modules are kept, whatever the shell says: each worker, and each process that a test starts, would compile them anew."""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
