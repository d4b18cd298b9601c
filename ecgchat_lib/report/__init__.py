"""From a recording to a one-page report: sections, LaTeX, PDF."""
