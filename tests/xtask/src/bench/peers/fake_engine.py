"""Stands in for a program of a layer in tests: fake_engine.py COLUMNS VALUE [MOST_TOKENS]. Each run takes 1 ms and gives `VALUE` everywhere; with more
tokens than that the program ends."""

import sys
from array import array

columns, value, most = int(sys.argv[1]), float(sys.argv[2]), int((sys.argv[3:] or [1 << 30])[0])
print("ready", flush=True)
for line in sys.stdin:
    n_tokens, _, result = line.split()
    if int(n_tokens) > most:
        sys.exit("no memory for so many tokens")
    if result != "-":
        with open(result, "wb") as file:
            array("f", [value] * (columns * int(n_tokens))).tofile(file)
    print("0.001 0.001", flush=True)
