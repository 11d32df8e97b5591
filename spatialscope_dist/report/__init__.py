"""The report of a study: accuracy against truth, figures, and one HTML page that stands alone."""
