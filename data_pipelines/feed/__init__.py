"""How data sets become batches: exactly, on any number of hosts, from any step.

rows.py      which record a row is, and what is drawn for it
records.py   reading the shards of a data set
examples.py  rows of tokens, of sound and of texts
source.py    these as a seqio data source, and mixtures of them
converter.py what the models take
tasks.py     the seqio registry: a task a corpus and stage
batches.py   what a gin file hands to the training loop
"""
