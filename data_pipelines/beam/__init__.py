"""How audio becomes shards: Apache Beam pipelines from manifests to a data set of `shards.py`.

A survey reads every file once and decides what goes in (`survey.py`); the encoding reads what went
in again, window by window, and writes shards (`encoding.py`); `job.py` runs both and goes on where
an earlier run was killed. Sound never goes through a shuffle: reading a file a second time costs
less than storing it decoded.
"""
