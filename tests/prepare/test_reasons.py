"""Users meet the reasons for leaving something out in logs and reports: docs/left-out.md explains each."""

import re

from lit_gpt.repository import REPOSITORY

NAMED = re.compile(
    r'(?:Malformed|Unproven|LeftOut|Bad|_left_out|removals\.add)\(\s*"(\w+)"'  # where one is left out
    r'|^ +(?:reason =|return|yield) "([a-z]+_[a-z0-9_]+)"'  # where one is chosen
    r'|: tuple\[str, str\] \| None = \("(\w+)"',
    re.MULTILINE,
)


def test_every_reason_is_explained():
    named: set[str] = set()
    for path in (REPOSITORY / "utils" / "prepare").rglob("*.py"):
        for found in NAMED.findall(path.read_text(encoding="utf-8")):
            named.update(filter(None, found))
    page = (REPOSITORY / "docs" / "left-out.md").read_text(encoding="utf-8")
    explained: set[str] = set()
    for row in page.splitlines():
        if row.startswith("| `"):
            explained.update(re.findall(r"`(\w+)`", row.split("|")[1]))
    assert len(named) > 35 and named == explained
