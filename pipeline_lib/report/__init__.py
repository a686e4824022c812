"""One HTML page for a run: `collect` reads the artifacts, `page` writes the page."""
