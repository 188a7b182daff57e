"""Runs moec and its peers by turns: run.py JOBS ANSWERS, which `cargo xtask bench --peers` calls.

`JOBS` is a list in JSON of layers in a format, each with the programs to run (`turns.py` says how they are asked). For each job and number of tokens it
adds to `ANSWERS` what every program took in every round, what a plain read of memory took between runs, and how far each result is from moec's.
It judges nothing: that is done by the table.
"""

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import turn
import weights
from turns import Failed, Program, Took, by_turns, settle

#: Read between two runs: more than caches hold.
READ_BYTES = 64 << 20

#: Of what Linux counts processor time in, in a second.
TICKS = os.sysconf("SC_CLK_TCK")


def busy() -> float:
    """Seconds of all processors together in which they were not idle."""
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / TICKS


def taken_by(process: int) -> float:
    """Seconds of the processor that a process took."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS


def put_first(process: int) -> None:
    """Real-time priority for all threads of a process: it runs whenever it can, whatever else there is to do."""
    for thread in Path(f"/proc/{process}/task").glob("*"):
        try:
            os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))
        except ProcessLookupError:
            # It ended meanwhile.
            pass
        except PermissionError:
            sys.exit("real-time priority is not allowed here: run as root, or without --realtime")


class Others:
    """How much of the processors everybody else took while programs ran."""

    def __init__(self):
        self.taken = self.there = 0.0

    def during(self, engine: "Engine", *request) -> Took | None:
        if engine.failed:
            return None
        start, all_busy, own = time.perf_counter(), busy(), taken_by(engine.program.process.pid)
        took = engine.ask(*request)
        if took is not None:
            self.taken += busy() - all_busy - (taken_by(engine.program.process.pid) - own)
            self.there += (time.perf_counter() - start) * os.cpu_count()
        return took

    def share(self) -> float:
        return max(0.0, self.taken / self.there) if self.there else 0.0


class Engine:
    """One program of a job, and why it has stopped answering if it has. `FOLDER` in its command is where weights are."""

    def __init__(self, name: str, command: list[str], folder: Path, threads: int):
        self.name, self.failed, self.program = name, None, None
        self.errors = open(folder / f"{name.replace(' ', '-')}.log", "w+")
        more = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        more |= {"PYTHONDONTWRITEBYTECODE": "1", "RUST_BACKTRACE": "0"}
        try:
            words = [word.replace("FOLDER", str(folder)) for word in command]
            self.program = Program(words, self.errors, env=os.environ | more)
        except (Failed, OSError) as why:
            self.failed = str(why)

    def ask(self, *request) -> Took | None:
        try:
            return self.program.ask(*request)
        except Failed as why:
            self.failed = str(why)
            return None


def answers(job: dict, folder: Path) -> dict:
    layer, threads = weights.Layer(**job["layer"]), job["threads"]
    weights.write(folder, layer, job["format"])
    # Or they are still written to the disk, which takes memory's time, while the first layers are measured.
    os.sync()
    reader = Program(job["reader"])
    engines = {e["name"]: Engine(e["name"], e["command"], folder, threads) for e in job["engines"]}
    if job["realtime"]:
        # Not before: nobody has to wait while layers are loaded.
        for program in (reader, *(e.program for e in engines.values() if e.program)):
            put_first(program.process.pid)
    others = Others()
    runs = [turns_with(n_tokens, job, layer, folder, reader, engines, others) for n_tokens in job["tokens"]]
    for program in (reader, *(e.program for e in engines.values() if e.program)):
        program.close()
    failed = {name: e.failed for name, e in engines.items() if e.failed}
    return {"failed": failed, "others": others.share(), "runs": runs}


def turns_with(n_tokens: int, job: dict, layer, folder: Path, reader: Program, engines: dict, others: Others) -> dict:
    """All rounds with one number of tokens."""
    form = weights.FORMATS[job["format"]]
    expert_bytes = sum(form.matrix_bytes(rows, cols) for _, rows, cols in layer.matrices())
    touched, read, results = {}, [], {}
    running = [e.program.process.pid for e in engines.values() if e.program]

    def run(name: str, i: int) -> Took | None:
        path = folder / f"turn-{i}"
        if i not in touched:
            touched[i] = turn.write(path, layer, n_tokens, seed=1000 * n_tokens + i)
        settle(running)
        read.append(READ_BYTES / reader.ask(READ_BYTES).wall)
        results[name] = folder / f"result-{name.replace(' ', '-')}"
        # The round that is not counted is the one whose results are compared.
        result = "-" if i else results[name]
        return others.during(engines[name], n_tokens, path, result)

    rounds = by_turns([name for name, e in engines.items() if not e.failed], job["pairs"], run)
    written = [name for name, path in results.items() if path.exists()]
    distances = {
        name: turn.distance(results[name], results["moec"], layer.hidden)
        for name in written
        if name != "moec" and "moec" in written
    }
    for path in (*results.values(), *(folder / f"turn-{i}" for i in touched)):
        path.unlink(missing_ok=True)
    whole = {name for name in results if all(r[name] for r in rounds)}
    return {
        "tokens": n_tokens,
        "bytes": [touched[i] * expert_bytes for i in range(1, job["pairs"] + 1)],
        "read_bytes_per_second": read,
        "wall": {name: [r[name].wall for r in rounds] for name in sorted(whole)},
        # No number of JSON is infinite.
        "distance": {name: far if math.isfinite(far) else None for name, far in distances.items()},
    }


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    done = []
    for job in jobs:
        print(f"{job['model']} {job['format']}: {', '.join(e['name'] for e in job['engines'])}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            done.append({"model": job["model"], "format": job["format"], **answers(job, Path(folder))})
        # What was measured is kept when a later job is stopped.
        out.write_text(json.dumps(done, indent=1, allow_nan=False))


main()
