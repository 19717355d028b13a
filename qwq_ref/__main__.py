"""`python -m qwq_ref` is `qwq`."""

from .cli import main

raise SystemExit(main())
