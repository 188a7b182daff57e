"""The command line that comes with the package."""

import os
import sys

from ._compile import program


def main() -> None:
    """Becomes ``moec`` with the arguments of this process."""
    os.execv(program(), ["moec", *sys.argv[1:]])
