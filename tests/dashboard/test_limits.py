"""Bounds on what visitors send."""

import threading
from concurrent.futures import ThreadPoolExecutor

from dashboard.limits import LARGE_REQUEST, one_large_request_at_a_time


def test_large_requests_are_read_one_at_a_time_and_small_ones_beside_them():
    inside, most, small = [], [], threading.Event()

    def app(environ, start_response):
        if environ.get("CONTENT_LENGTH") in (None, "", "7"):
            small.set()
            return [b"small"]
        inside.append(environ)
        most.append(len(inside))
        assert small.wait(10)
        inside.pop()
        return [b"large"]

    bounded = one_large_request_at_a_time(app)
    with ThreadPoolExecutor(4) as pool:
        large = [pool.submit(bounded, {"CONTENT_LENGTH": str(LARGE_REQUEST + 1)}, None) for _ in range(3)]
        assert [bounded(environ, None) for environ in ({}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "7"})] == [
            [b"small"]
        ] * 3
        assert [future.result() for future in large] == [[b"large"]] * 3
    assert most == [1, 1, 1]
