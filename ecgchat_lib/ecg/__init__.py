"""One recording: read, write, filter, measure, judge its quality, draw it on ECG paper."""
