import pytest
from sheaf_operator.api import quantity


@pytest.mark.parametrize(
    ("cpu", "threads", "cores"),
    [("1", 1, 1), ("500m", 1, 1), ("1500m", 1, 2), ("4", 4, 4), ("2000m", 2, 2), ("100m", 1, 1)],
)
def test_a_cpu_request_pays_for_whole_threads(cpu: str, threads: int, cores: int) -> None:
    assert quantity.compute_threads(cpu) == threads
    assert quantity.whole(cpu) == cores


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("1000m", "1", True), ("2048Mi", "2Gi", True), (1, "1", True), ("1", "2", False), ("x", "1", False)],
)
def test_spelling_does_not_matter(a: object, b: object, same: bool) -> None:
    assert quantity.same(a, b) is same


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (270532608, "258 MiB"),
        (16 * 2**30, "16.0 GiB"),
        (80 * 2**30, "80.0 GiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert quantity.human_bytes(count) == text
