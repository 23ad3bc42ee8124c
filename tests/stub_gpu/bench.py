"""``python -m benchmarks.gpu`` on the stub."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.gpu import __main__ as command

if __name__ == "__main__":
    status = command.main(sys.argv[1:])
    print(json.dumps({"exit_status": status}), flush=True)
    os._exit(0)
