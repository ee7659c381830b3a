"""``python -m invconv``: the ``invconv`` program."""

from invconv.cli import main

main()
