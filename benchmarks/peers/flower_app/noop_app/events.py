"""Tells the driver what happened when: one JSON line appended to a file."""

import json
import os
import time


def emit(path, event, **more):
    line = json.dumps({"event": event, "at": time.time(), **more}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
