"""Several processes that answer: workers on one port of a machine, replicas under Ray Serve."""
