"""Every figure of the course, one module a notebook."""
