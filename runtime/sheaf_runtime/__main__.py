import sys

from sheaf_runtime.cli import main

sys.exit(main())
