"""Everything the pages draw; the only place that caches.

In: folders on disk and what a page asks. Out: frozen results, shared by sessions and read-only.
Nothing here imports torch or scikit-learn before a checkpoint is opened or a job runs, so that the
first picture comes from a file at once.
"""
