"""The lab: runs experiments, keeps one record per run, and makes reports from records. It imports no method."""
