"""Mutants of GGUF files: each is read and survives being touched and rewritten, or is a ValueError that says where.

``LOWBIT_CTS_FUZZ_FILES=1000000 pytest -s reference/tests/test_gguf_fuzzing.py`` examines that many on all cores, and
leaves the record in ``results/gguf_fuzzing.json`` (or where ``LOWBIT_CTS_FUZZ_RECORD`` says).
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    import gguf_fuzzer as fuzzer
finally:
    sys.path.remove(str(HERE))

SMOKE = 20_000
FILES = int(os.environ.get("LOWBIT_CTS_FUZZ_FILES", str(SMOKE)))
RECORD = Path(os.environ.get("LOWBIT_CTS_FUZZ_RECORD", "results/gguf_fuzzing.json"))


def test_the_files_that_are_mutated_are_read():
    for file, fields in fuzzer.corpus():
        assert fuzzer.examine(file) == "accepted"
        assert fields[-1][0] < len(file)


def test_a_mutant_is_a_function_of_its_number():
    first, second = fuzzer.corpus(), fuzzer.corpus()
    assert [fuzzer.mutant(first, n) for n in range(500)] == [fuzzer.mutant(second, n) for n in range(500)]


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory and time as Linux does")
def test_mutants_are_read_or_refused(capsys):
    def progress(done: int, seconds: float) -> None:
        if FILES > SMOKE and done % (FILES // 50 // fuzzer.PER_TASK * fuzzer.PER_TASK or 1) == 0:
            with capsys.disabled():
                print(f"\r{done} of {FILES} files, {done / seconds:.0f} a second", end="", file=sys.stderr, flush=True)

    record = fuzzer.campaign(FILES, progress, processes=None if FILES > SMOKE else 1)
    if FILES > SMOKE:
        fuzzer.save(record, RECORD)
    assert not record["failures"], record["failures"][:5]
    assert record["accepted"] + record["refused"] == FILES
    assert record["accepted"] > FILES // 20  # enough of both to mean something
    assert len(record["refused_by_kind"]) > 40
    assert record["seconds_of_slowest_file"] < 5
    assert record["peak_bytes_beyond_file_size"] < fuzzer.ALLOWANCE
