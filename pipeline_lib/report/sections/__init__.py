"""The sections of the page, one module for stages that belong together."""
