"""What the user types to call the program."""

import shlex
import sys


def program() -> str:
    """How the user calls facelit in a shell."""
    return f"python {shlex.quote(sys.argv[0])}" if sys.argv[0].endswith("main.py") else "facelit"
