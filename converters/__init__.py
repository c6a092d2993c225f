"""Built-in converters of layers that some route lacks, a file per family."""
