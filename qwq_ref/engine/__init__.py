"""Load a model and generate text: weight forms, backends, caches, sessions and samplers."""
