"""`python -m fewshotseg`."""

from fewshotseg import cli

if __name__ == "__main__":
    cli.main()
