"""ECG-Instruct: conversations built from reports, statements and measurements."""
