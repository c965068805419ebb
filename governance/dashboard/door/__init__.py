"""The door of the dashboard: who comes in, as whom, for how long, and what a request may cost.

Three ways in: a link that works once, for the seat's own holder on this machine; the certificate of a seat; an
organisation's OpenID provider. `governance.dashboard` asks for `routes` and `middleware` and reads `request.state`.
"""

from governance.dashboard.door.door import Door, Members
from governance.dashboard.door.opening import open_door
from governance.dashboard.door.origin import Origin
from governance.dashboard.door.settings import DoorFile, load

__all__ = ["Door", "DoorFile", "Members", "Origin", "load", "open_door"]
