"""Does a test notice when a study is wired wrongly? Faults, each put into a copy of the sources, and tests that must fail."""
