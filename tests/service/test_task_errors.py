"""Errors that end a service."""

from __future__ import annotations

import pytest

from ocsf_nft.errors import DeliveryError, FenceError
from ocsf_nft.service.task_errors import first_error


def test_first_error_of_several_tasks_is_the_one_that_ends_the_service() -> None:
    inner = ExceptionGroup("inner", [FenceError("first"), FenceError("second")])
    with pytest.raises(FenceError, match="first"), first_error():
        raise ExceptionGroup("outer", [inner, DeliveryError("third")])


def test_errors_with_a_bug_among_them_are_all_shown() -> None:
    with pytest.raises(ExceptionGroup) as ended, first_error():
        raise ExceptionGroup("tasks", [FenceError("first"), ValueError("a bug")])
    assert [str(each) for each in ended.value.exceptions] == ["first", "a bug"]
