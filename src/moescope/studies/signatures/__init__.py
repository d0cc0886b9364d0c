"""Does a mixture of experts route by task? Routing signatures beside what chance and trivial cues give."""
