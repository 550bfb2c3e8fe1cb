"""A sample of the campaign's attacks, on the dashboard of the walks."""

import pytest

from tests.campaigns.dashboard_attacks import climbs, forgeries, formulas, judge, rebindings, stall

pytestmark = pytest.mark.slow


def test_what_strangers_ask_for_is_refused_and_costs_a_visitor_nothing(address, tmp_path):
    port = int(address.rpartition(":")[2])
    attacks = [
        *forgeries(port, {})[::10],
        *rebindings(port)[::10],
        *climbs(port, tmp_path)[::40],
        *formulas(port)[::10],
    ]
    for outcome in (judge("requests", attacks), stall(port, 100)):
        assert outcome.tried > 10 and not outcome.failed, outcome.faults
