"""A brief run of the fuzzing of bundles; `python tests/fuzz/bundles.py` runs it long."""

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")


def test_mutated_bundles_and_lone_files_are_refused_in_time_and_memory():
    from fuzz.bundles import MEGABYTES, run

    failed, peak = run(300, seed=1, say=lambda line: None)
    assert failed == {}
    assert 50 < peak <= MEGABYTES
