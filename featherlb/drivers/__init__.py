"""The edge of the system: each module is the only importer of its foreign library."""
