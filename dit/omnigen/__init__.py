"""OmniGen v1 (arXiv 2409.11340): one transformer that reads interleaved words and pictures and paints."""
