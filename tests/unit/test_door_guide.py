"""docs/signing-in.md: the door files that it shows can be used as they are written."""

from __future__ import annotations

import re
from pathlib import Path

from governance.dashboard.door import Origin, settings
from governance.dashboard.door.oidc import BACK

GUIDE = Path(__file__).parents[2] / "docs" / "signing-in.md"


def test_every_door_file_of_the_guide_opens_a_door(tmp_path: Path) -> None:
    text = GUIDE.read_text()
    for name in ("board.crt", "board.key", "client.secret", "revoked.txt"):
        (tmp_path / name).write_text("")
    ways = []
    for number, body in enumerate(re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)):
        path = tmp_path / f"{number}.toml"
        path.write_text(body)
        ways.append(settings.load(path).way)
        assert Origin.of("board.example", 443, settings.load(path))
    assert ways == ["link", "certificate", "oidc"]
    assert f"https://board.example{BACK}" in text
