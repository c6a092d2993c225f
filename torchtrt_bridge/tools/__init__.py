"""What a person asks of a machine, a file or a model: :mod:`.doctor`, :mod:`.inspect`."""
