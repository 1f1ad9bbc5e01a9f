import re

import pytest

from mpo.charts import decimals, fixed, interval, lines, number, outcomes, signed, ticks


def numbers(pattern, svg):
    return [float(found) for found in re.findall(pattern, svg)]


def test_an_interval_lies_where_its_numbers_say():
    svg = interval(-0.5, 0.0, 1.0, reach=1.0)  # 2 % of either side is free: 2 + 96 * (x + 1) / 2
    assert numbers(r'class="span" x1="([\d.]+)%"', svg) == [26.0]
    assert numbers(r'x2="([\d.]+)%" y1="50%"', svg) == [98.0]
    assert numbers(r'cx="([\d.]+)%"', svg) == [50.0]


def test_an_interval_is_coloured_by_its_side_of_zero():
    assert "row rise" in interval(0.1, 0.2, 0.3, 1) and "row fall" in interval(-0.3, -0.2, -0.1, 1)
    assert "row open" in interval(-0.1, 0.2, 0.3, 1)


def test_outcomes_fill_the_bar():
    assert numbers(r'x="([\d.]+)%"', outcomes(0.5, 0.2, 0.3)) == [0, 50, 70]
    assert numbers(r' width="([\d.]+)%"', outcomes(0.5, 0.2, 0.3)) == [50, 20, 30]


def test_curves_share_their_axes():
    svg = lines({"a": [(0, 0.0), (20, 1.0)], "b": [(0, 0.5), (20, 0.5)]})
    first, second = re.findall(r'<polyline class="curve c\d" points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in first.split())
    assert x0 < x1 and y0 > y1  # up is smaller in SVG
    (_, middle), _ = (map(float, point.split(",")) for point in second.split())
    assert middle == pytest.approx((y0 + y1) / 2)


def test_a_curve_of_one_step_is_a_point():
    assert "<circle" not in lines({"a": [(0, 0.0), (20, 1.0)]})
    ((x, y),) = re.findall(r'<circle class="point c0" cx="([\d.]+)" cy="([\d.]+)"', lines({"a": [(2, 0.3)]}))
    assert 52 <= float(x) <= 360 and 0 < float(y) < 190  # within the axes


@pytest.mark.parametrize(("low", "high"), [(0, 150), (-0.031, 0.27), (0.69, 0.70), (5, 5), (-3e-7, 1e-7)])
def test_ticks_are_round_and_hold_the_range(low, high):
    found = ticks(low, high, 4)
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert found[0] <= low + 1e-9 * steps[0] and found[-1] >= high - 1e-9 * steps[0] and 2 <= len(found) <= 7
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:.0e}"[0] in "125"


def test_numbers_are_short_and_signs_are_true():
    assert [number(x) for x in (0.0, 1.2345, -0.5, 12345.0)] == ["0", "1.23", "−0.5", "12345"]
    assert (
        signed(0.1234, 3) == "+0.123"
        and signed(-0.0004, 3) == "+0.000"
        and signed(-2.0, 1) == "−2.0"
        and fixed(-2.0, 2) == "−2.00"
    )
    reaches = (0.021, 0.5, 4.0, 99.0, 1000.0, 0.0, 1e-9, 2e-5)
    assert [decimals(reach) for reach in reaches] == [4, 3, 2, 1, 1, 1, 1, 6]
