"""The dashboard around a running node, called in this process."""

import html
import re

import pytest

from jobpipe.dashboard import Dashboard
from tests.api.client import open_door


@pytest.fixture
async def door():
    """A door with the dashboard, over memory."""
    async with open_door(pages=Dashboard) as opened:
        yield opened


@pytest.fixture
def words():
    """What a page says, without its markup."""

    def said(response):
        text = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", response.text, flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())

    return said
