from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.bench.sheet import FIRST, Sheet, percentile, summary


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert np.isclose(percentile(values, percent), np.percentile(values, percent), atol=1e-6)


def test_a_summary_names_what_the_report_shows() -> None:
    found = summary([3.0, 1.0, 2.0])
    assert (found["mean"], found["min"], found["p50"], found["max"]) == (2.0, 1.0, 2.0, 3.0)


def test_samples_of_several_rounds_stand_together_and_what_is_unknown_is_left_out() -> None:
    sheet = Sheet()
    sheet.page("turns", "a").add("cold", FIRST, 1.0, None)
    sheet.page("turns", "b").add("cold", FIRST, 5.0)
    sheet.page("turns", "a").add("cold", FIRST, 2.0)
    sheet.page("turns", "a").add("warm", FIRST, None)
    assert list(sheet.samples.values()) == [{"a": [1.0, 2.0], "b": [5.0]}]
