"""Pages that are served on this machine: `dlopt app`. `server` joins them, each page has a module of its own."""
