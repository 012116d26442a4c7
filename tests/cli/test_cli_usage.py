"""What is typed wrong, and what is said about it: `usage.txt`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrlapi_async.cli.exits import Exit

if TYPE_CHECKING:
    from tests.cli.support import Call, World

FOLDER = Path(__file__).parent
USAGE = (FOLDER / "usage.txt").read_text("utf-8")


@pytest.mark.parametrize(("typed", "said"), re.findall(r"(?m)^(\S.*?)(?: {2,})(\S.*)$", USAGE))
def test_usage(call: Call, world: World, typed: str, said: str) -> None:
    typed, said = (text.replace("@", str(FOLDER)) for text in (typed, said))
    result = call(world, *typed.split())
    assert result.err.startswith(f"error: {said}")
    assert result.err.count("\n") == 1
    assert (result.status, result.out, world.counters.requests) == (Exit.USAGE, "", 0)
    assert "base_url" not in result.err
