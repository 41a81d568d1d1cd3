"""One file a stage, all the same shape: `evaluate(model, data, out, ...) -> Result`."""
