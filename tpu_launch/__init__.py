"""What starts, watches and restarts a training job on many hosts; see README.md."""
