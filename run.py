"""`python run.py` in a clone; `python run.py --help` and fewshotseg/cli.py say what it does."""

import pathlib
import sys

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from fewshotseg import cli

    cli.main()
