"""Storage options on the command line."""

from typing import Any

import pytest

from ckptmgr.cli.storing import options_of_both, storage_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("endpoint_url=http://host:9000/a=b", "http://host:9000/a=b"),
        ("retries=30", 30),
        ("anon=true", True),
        ("use_ssl=False", False),
        ("profile=null", None),
        ("key=0123456789", "0123456789"),
        ("secret=true", "true"),
        ('client_kwargs={"region_name": "here"}', {"region_name": "here"}),
        ('token={"type": "service_account"}', {"type": "service_account"}),
        ("region=", ""),
    ],
)
def test_a_value_is_what_it_looks_like_and_credentials_are_text(text: str, expected: Any) -> None:
    (value,) = storage_options([text]).values()

    assert (value, type(value)) == (expected, type(expected))


def test_options_go_to_the_remote_one_of_two_places() -> None:
    given = ["region=here"]

    assert options_of_both("s3://a/run", "run", given, []) == ({"region": "here"}, {})
    assert options_of_both("run", "s3://a/run", given, []) == ({}, {"region": "here"})
    assert options_of_both("a", "b", ["follow_links=true"], []) == ({"follow_links": True}, {"follow_links": True})


def test_the_target_may_have_options_of_its_own() -> None:
    found = options_of_both("s3://a/run", "s3://b/run", ["region=here", "anon=true"], ["region=there"])

    assert found == ({"region": "here", "anon": True}, {"region": "there", "anon": True})
