"""``python -m mbt_fast`` is ``mbt-fast``."""

from mbt_fast.cli.main import main

raise SystemExit(main())
