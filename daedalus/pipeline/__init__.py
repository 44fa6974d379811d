"""The notebooks as a pipeline, the check of every number, and the paper."""
