"""A sample of the campaign, in the browser of the walks."""

import pytest

from tests.campaigns.dashboard_chaos import Chaos, kill_server, remove, remove_early, write_runs

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("hasty_mlflow")
def test_a_store_and_a_server_that_are_gone_are_told_and_cost_the_page_nothing(store, browser):
    write_runs("first", "second")
    chaos = Chaos(store, browser)
    try:
        chaos.select()
        for disturbance in (remove(chaos), kill_server(chaos), remove_early(chaos)):
            assert disturbance.is_good, disturbance
    finally:
        chaos.end()
