"""What a checkout needs beside the plugin: the tests of the suite draw the same examples in every run."""

from hypothesis import settings

settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")
