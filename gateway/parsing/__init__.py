"""From the text a model writes to what it means: words, reasoning and calls of tools."""
