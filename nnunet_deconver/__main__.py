"""`python -m nnunet_deconver` is the command `nnunet-deconver`."""

import sys

from nnunet_deconver.cli import main

sys.exit(main())
