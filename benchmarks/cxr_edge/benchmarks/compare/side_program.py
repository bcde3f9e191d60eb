"""Program of a side: it predicts each file that standard input names, and prints time and answer as JSON.

It runs with the code of the side, which may be another revision. It therefore uses nothing but `load` and `predict`.

    python side_program.py BUNDLE ENGINE PRECISION THREADS
"""

import json
import sys
from time import perf_counter, process_time


def main() -> None:
    """Load the file, say where the code lies, then answer each line."""
    import cxr_edge.runtime as runtime

    bundle, engine, precision, threads = sys.argv[1:]
    predictor = runtime.load(bundle, engine, precision, threads=int(threads))
    print(json.dumps({"code": runtime.__file__}), flush=True)
    for line in sys.stdin:
        start, busy = perf_counter(), process_time()
        prediction = predictor.predict(line.rstrip("\n"))
        wall, busy = perf_counter() - start, process_time() - busy
        times = {"ms": 1e3 * wall, "cpu_ms": 1e3 * busy}
        print(json.dumps({"probability": prediction.probability, "label": prediction.label, **times}), flush=True)


if __name__ == "__main__":
    main()
