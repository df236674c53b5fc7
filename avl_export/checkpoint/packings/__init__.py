"""What config.json says about weights that a checkpoint holds quantized: a file for each method."""
