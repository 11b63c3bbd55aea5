"""Compares with published references: one or more tests for every fixture found, see `parity.harness`."""

from __future__ import annotations

import pytest

from parity.harness import ParityTest, find_fixtures, load_handlers, make_tests, parity_folder


def _collect() -> list[ParityTest]:
    try:
        fixtures = find_fixtures(parity_folder())
    except FileNotFoundError:
        return []  # test_fixtures_are_there fails and says why
    handlers = load_handlers()
    return [test for fixture in fixtures for test in make_tests(fixture, handlers)]


def test_fixtures_are_there() -> None:
    find_fixtures(parity_folder())


@pytest.mark.parametrize("test", [pytest.param(test, id=test.id) for test in _collect()])
def test_parity(test: ParityTest) -> None:
    if test.skip:
        pytest.skip(test.skip)
    if test.check is None:
        pytest.fail(test.problem, pytrace=False)
    test.check(test.fixture, test.case)
