"""The memory of a training over time, as `rayff bench data --memory-limit` tells it."""

from rayff.bench.data import KINDS, tell_memory
from rayff.bench.results import Results


def test_the_memory_of_each_kind_of_process_is_told_in_eight_parts():
    results = Results("data", {})
    samples = [{"at_s": 2.0 * i, **dict.fromkeys(KINDS, 2.0**20 * (i // 3))} for i in range(24)]
    tell_memory(results, samples, "10 GiB")
    (table,) = results.tables
    assert table.row_count == 8
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["until"][0] == "4.00 s"
    assert columns["ray"] == [f"{part} MiB" for part in range(8)]
    assert set(columns) == {"until", *KINDS}
