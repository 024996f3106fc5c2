"""Commands: the only floor that parses arguments and gin files."""
