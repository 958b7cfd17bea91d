"""One module per `quire` command; each imports what is heavy only when it runs."""
