"""Programs that keep a layer in memory and run it on request, so that several of them take turns on one machine.

Such a program prints `ready` when its layer is in memory. It answers each line of its input with a line of two numbers: the
seconds that the run took, of the clock and of the processor as the mean over its threads. Of what lines ask for, the first word is
the number of tokens; programs that are given their tokens get two paths after it, of what to read and of where to write the
result (`-` for nowhere). An answer of other words says why there is no time.
"""

import statistics
import subprocess
import time
from pathlib import Path
from typing import Callable, NamedTuple, Sequence


class Took(NamedTuple):
    """Seconds of one run."""

    wall: float
    cpu: float


class Failed(Exception):
    """A program that has ended, or has no time to give; says why."""


class Program:
    """A running program and what it writes to its standard error."""

    def __init__(self, command: Sequence[str], errors=None, **options):
        self.errors = errors
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, **options
        )
        if (line := self._line()) != "ready":
            self.close()
            raise Failed(f"it said `{line}` instead of `ready`")

    def ask(self, *request) -> Took:
        """Asks for one run."""
        try:
            self.process.stdin.write(" ".join(map(str, request)) + "\n")
        except BrokenPipeError:
            raise Failed(self._end()) from None
        answer = self._line()
        try:
            wall, cpu = map(float, answer.split())
        except ValueError:
            raise Failed(answer) from None
        return Took(wall, cpu)

    def close(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._end())
        return line.strip()

    def _end(self) -> str:
        """What a program that has ended says of it."""
        code = self.process.wait()
        said = ""
        if self.errors is not None:
            self.errors.seek(0)
            lines = [line.strip() for line in self.errors if line.strip() and not line.startswith("note:")]
            said = lines[-1] if lines else ""
        return f"it ended with code {code}" + (f": {said}" if said else "")


def by_turns(names: Sequence[str], rounds: int, run: Callable[[str, int], Took]) -> list[dict[str, Took]]:
    """What each of `names` took in each round. Who is first moves on by one each round; the first round is not counted."""
    taken = []
    for i in range(rounds + 1):
        first = i % max(len(names), 1)
        taken.append({name: run(name, i) for name in (*names[first:], *names[:first])})
    return taken[1:]


def settle(processes: Sequence[int], longest: float = 1.0) -> None:
    """Waits until no thread of these processes runs: threads spin for a while after their work, those of ONNX Runtime and OpenMP for tens
    of milliseconds."""
    end, quiet = time.monotonic() + longest, 0
    while quiet < 2 and time.monotonic() < end:
        time.sleep(0.002)
        quiet = 0 if any(map(_runs, processes)) else quiet + 1


def _runs(process: int) -> bool:
    """Whether any thread runs or wants to."""
    for stat in Path(f"/proc/{process}/task").glob("*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
        except OSError:
            # It ended meanwhile.
            pass
    return False


class Ratios(NamedTuple):
    """Of neighbouring runs."""

    least: float
    median: float
    most: float

    @staticmethod
    def of(above: Sequence[float], below: Sequence[float]) -> "Ratios":
        all_of_them = [a / b for a, b in zip(above, below, strict=True)]
        return Ratios(min(all_of_them), statistics.median(all_of_them), max(all_of_them))
