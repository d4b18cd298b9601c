"""The machinery of the notebooks: parameters, profiles, figures, exercises, building and running."""
