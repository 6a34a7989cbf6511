"""Where datasets come from: MovieLens folders and a synthetic feed."""
