"""`python -m thermokron.host.cli`, which is `thermokron`."""

import sys

from thermokron.host.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
