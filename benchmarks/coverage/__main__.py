import sys

from benchmarks.coverage.command import main

sys.exit(main())
