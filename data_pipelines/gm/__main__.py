"""`python -m data_pipelines.gm --out DIR --clips N`."""

import argparse
import sys

from data_pipelines.gm import cli

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="data_pipelines.gm", description=cli.__doc__)
    cli.add_arguments(parser)
    sys.exit(cli.run(parser.parse_args()))
