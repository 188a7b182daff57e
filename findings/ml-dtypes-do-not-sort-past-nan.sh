#!/usr/bin/env bash
# ml_dtypes with NumPy: an array of bfloat16 or FP8 with one NaN in it is left unsorted by sort, argsort and partition: most rows of 256 numbers are, an eighth of them have other 8 largest, unique counts others, and median gives some number instead of NaN. NumPy's own types put NaN last, float16 included; max, nanmax and argmax are right.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir numpy==2.4.6 ml_dtypes==0.6.0
cat > "$dir/check.py" <<'PY'
import sys
from importlib.metadata import version
import ml_dtypes, numpy as np

print("numpy", version("numpy"), "ml_dtypes", version("ml_dtypes"))
ROWS, EXPERTS, K = 200, 256, 8
draw = np.random.default_rng(0)
logits = draw.standard_normal((ROWS, EXPERTS)).astype(np.float32)
place = draw.integers(0, EXPERTS, ROWS)

def look(dtype, with_nan):
    a = logits.astype(dtype)
    if with_nan:
        a[np.arange(ROWS), place] = np.nan
    exact = a.astype(np.float32)
    numbers = [np.sort(row[~np.isnan(row)]) for row in exact]
    rows = lambda f: sum(bool(f(a[i], exact[i], numbers[i])) for i in range(ROWS))
    as32 = lambda x: np.asarray(x).astype(np.float32)
    # NaN itself may stand anywhere: only the numbers have to be in order.
    unsorted = rows(lambda a, e, n: not np.array_equal((s := as32(np.sort(a)))[~np.isnan(s)], n))
    largest = {
        "argsort": lambda a: as32(a[np.argsort(-a)[:K]]),
        "argpartition": lambda a: np.sort(as32(a[np.argpartition(-a, K)[:K]]))[::-1],
    }
    others = {name: rows(lambda a, e, n: not np.array_equal(f(a), n[::-1][:K])) for name, f in largest.items()}
    median = rows(lambda a, e, n: not np.array_equal(as32(np.median(a)), as32(np.median(e)).astype(dtype).astype(np.float32), equal_nan=True)) if with_nan else 0
    again = rows(lambda a, e, n: len(np.unique(a)) != len(np.unique(e)))
    right = rows(lambda a, e, n: np.isnan(np.max(a)) == with_nan and np.argmax(a) == np.argmax(e) and as32(np.nanmax(a)) == np.nanmax(e))
    print(f"{np.dtype(dtype).name}, {'one NaN' if with_nan else 'no NaN'}: of {ROWS} rows {unsorted} are not sorted, "
          f"{others['argsort']} and {others['argpartition']} have other {K} largest by argsort and argpartition, {median} another median, {again} more or fewer distinct numbers; max and argmax right in {right}")
    return unsorted, others["argsort"], others["argpartition"], median, again, right

bad = 0
for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    assert look(dtype, False) == (0, 0, 0, 0, 0, ROWS)
    unsorted, argsort, argpartition, median, again, right = look(dtype, True)
    bad += right != ROWS
    if dtype in (np.float32, np.float16):
        bad += (unsorted, argsort, argpartition, median, again) != (0, 0, 0, 0, 0)
    else:
        bad += unsorted < ROWS // 2 or min(argsort, argpartition) < ROWS // 16 or median < ROWS // 2
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
