"""Program of the control process: fixed work of numpy alone, with no code of this project.

For each line of standard input it multiplies two matrices and prints the milliseconds that this took.
"""

import sys
from time import perf_counter

import numpy as np

SIDE = 256  # both operands and the result take 0.75 MB, so that they stay in the cache
REPEATS = 4


def main() -> None:
    """Answer each line."""
    first, second = np.random.default_rng(0).random((2, SIDE, SIDE), np.float32)
    result = first @ second
    print("ready", flush=True)
    for _ in sys.stdin:
        start = perf_counter()
        for _ in range(REPEATS):
            np.matmul(first, second, out=result)
        print(1e3 * (perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
