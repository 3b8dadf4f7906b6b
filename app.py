"""Start the studio: `python app.py` takes the flags of `dpo-studio serve`."""

import sys

from dpo_studio.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
