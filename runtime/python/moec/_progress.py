"""A bar while weights are loaded."""

import contextlib
import sys


@contextlib.contextmanager
def bar(name: str):
    """Gives a function ``(parameter, done, total)`` that moves a bar on standard error, in bytes.

    With tqdm, if that is installed; otherwise a line that is written over, on a terminal only.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    shown = None

    def with_tqdm(parameter: str, done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(total=total, desc=name, unit="B", unit_scale=True)
        shown.set_postfix_str(parameter, refresh=False)
        shown.update(done - shown.n)

    def plain(parameter: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB  {parameter}\033[K", end="", file=sys.stderr, flush=True)

    try:
        yield with_tqdm if tqdm else plain
        # Each weight was announced before it was read.
        if shown is not None:
            shown.update(shown.total - shown.n)
    finally:
        if shown is not None:
            shown.close()
        elif tqdm is None and sys.stderr.isatty():
            print(file=sys.stderr)
