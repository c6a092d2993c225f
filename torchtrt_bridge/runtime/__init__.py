"""Running and keeping compiled modules: the module itself, its saved form, and the programs that PyTorch runs."""
