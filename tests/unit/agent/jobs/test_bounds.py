"""A job's record has a bounded size whatever is in it, and shows the beginning of long values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prouter.fabric.frames import pack_body
from prouter.jobs import MAX_NAME, MAX_RECORD, JobRecord, bounded, shortened

long_texts = st.builds(lambda text, count: text * count, st.text(max_size=20), st.sampled_from([1, 30, 100_000]))


@given(
    name=long_texts,
    args=st.builds(lambda args, count: args * count, st.lists(long_texts, max_size=5), st.sampled_from([1, 3, 2000])),
    error=st.none() | long_texts,
    ports=st.builds(lambda count: [65535] * count, st.integers(0, 3000)),
)
def test_a_record_fits_whatever_is_in_it(name: str, args: list[str], error: str | None, ports: list[int]) -> None:
    record = JobRecord("u" * 64, "c" * 32, name, args=args, error=error, ports=ports)
    found = bounded(record)
    assert len(pack_body(found.to_wire())) <= MAX_RECORD
    assert bounded(found) == found, "it is not shortened any further"
    assert JobRecord.from_wire(found.to_wire()) == found
    assert found.args_shortened == (found.args != args)
    for shown, given_ in zip(found.args, args, strict=False):
        assert given_.startswith(shown.removesuffix("…"))


def test_an_ordinary_record_stays_as_it_is() -> None:
    record = JobRecord("u", "c", "n" * MAX_NAME, args=["python", "-c", "x" * 3000], error="no", ports=[1, 2])
    assert bounded(record) is record


def test_what_was_shortened_says_so() -> None:
    record = bounded(JobRecord("u", "c", "n" * 10_000, args=["tar", "x" * 100_000, "more"], error="e" * 10_000))
    assert record.args_shortened
    assert record.args[0] == "tar"
    assert record.args[1].startswith("x" * 3000)
    assert record.args[1].endswith("…")
    assert len(record.name) == MAX_NAME
    assert record.name.endswith("…")
    assert record.error is not None
    assert record.error.endswith("…")


@given(st.text(), st.integers(3, 50))
def test_a_shortened_text_has_so_many_bytes_and_is_a_beginning(text: str, most: int) -> None:
    found = shortened(text, most)
    assert len(found.encode("utf-8", "surrogatepass")) <= most
    assert found == text or text.startswith(found[:-1])
