"""Which fields of a configuration change nothing of what is trained."""

# They may differ between commands on one workdir, and between runs that a report takes for repetitions.
FREE_FIELDS = (
    "methods", "evaluate", "predict", "test_sets", "test_folders", "compilation_cache", "diagnose",
    "synthesize", "review",
)  # fmt: skip
